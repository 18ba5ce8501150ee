package consumer

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
)

func validConfig() Config {
	return Config{
		Brokers: []string{"localhost:9092"}, GroupID: "g", ClientID: "c", Topic: "t",
		Dialer: new(kafka.Dialer), Client: new(kafka.Client), Handler: new(fakeHandler),
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	}
}

func TestConfigReportsAllProblems(t *testing.T) {
	_, err := New(Config{Window: -1, WindowBytes: -1, Shelf: -1, SessionTimeout: -1, RebalanceTimeout: -1, Handover: -1, StopTimeout: -1, LeaveTimeout: -1})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"brokers", "group id", "no topic", "dialer", "client", "handler", "logger", "registerer",
		"session timeout", "rebalance timeout", "handover", "stop timeout", "the window must", "window in bytes", "shelf",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name the %s: %v", want, err)
		}
	}
	cfg := validConfig()
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

func TestConfigDefaults(t *testing.T) {
	cfg := validConfig()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	got := c.cfg
	if got.Name != "c" || got.Window != 1000 || got.WindowBytes != 16<<20 || got.Shelf != 1_000_000 ||
		got.SessionTimeout != 10*time.Second || got.RebalanceTimeout != 30*time.Second || got.StopTimeout != 30*time.Second {
		t.Errorf("defaults are %+v", got)
	}
	if _, err := New(cfg); err == nil {
		t.Error("registering the same metrics twice is no error")
	}
}

// A member whose heartbeat goes unanswered must close its gate before the
// group gives its partitions away.
func TestTimeoutsFollowFromTheSession(t *testing.T) {
	for _, session := range []time.Duration{time.Second, 6 * time.Second, 10 * time.Second, 30 * time.Second, 5 * time.Minute} {
		cfg := Config{SessionTimeout: session}
		if noticed := cfg.heartbeat() + cfg.groupTimeout(); noticed >= session {
			t.Errorf("session %s: a lost coordinator is noticed after %s", session, noticed)
		}
		if hb := cfg.heartbeat(); hb <= 0 || hb > time.Second || hb > session/3 {
			t.Errorf("session %s: heartbeat every %s", session, hb)
		}
	}
}
