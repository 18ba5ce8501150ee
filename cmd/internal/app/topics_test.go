package app

import (
	"errors"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
)

func TestCreateTopics(t *testing.T) {
	c := newCluster(t, kfake.NumBrokers(3))
	s := kafkaSettings(c)
	s.LedgerPartitions = 5
	k := NewKafka(&s, nil, s.Topics()...)
	defer k.Close()

	err := k.CheckTopics(t.Context(), RightsToRun)
	wrong, ok := errors.AsType[*TopicsError](err)
	if !ok || len(wrong.Problems) != 5 {
		t.Fatalf("got %v, want five missing topics", err)
	}
	created, err := k.CreateTopics(t.Context(), 4, 0)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.Topics(), created); diff != "" {
		t.Errorf("created (-want +got):\n%s", diff)
	}
	topics := settledTopics(t, k, func(ts []Topic) bool { return !slices.ContainsFunc(ts, func(t Topic) bool { return !t.Exists }) })
	for _, topic := range topics {
		want := 4
		if topic.Setting == "PACKSHIP_TOPIC_LEDGER" {
			want = 5
			if topic.Cleanup != "delete" || topic.Retention != s.LedgerHorizon.String() {
				t.Errorf("ledger: cleanup %s, retention %s; want delete and %s", topic.Cleanup, topic.Retention, s.LedgerHorizon)
			}
		}
		if topic.Partitions != want || topic.Replication != 3 || topic.Problem != "" {
			t.Errorf("%+v: want %d partitions, 3 replicas, no problem", topic, want)
		}
	}
	if err := k.CheckTopics(t.Context(), RightsToRun); err != nil {
		t.Errorf("after the creation: %v", err)
	}
	if created, err := k.CreateTopics(t.Context(), 4, 0); err != nil || len(created) != 0 {
		t.Errorf("the second time: created %v, %v", created, err)
	}
}

// TestDeadLettersHaveRoom creates the topic of the dead letters beside packed
// topics of several sizes: a dead letter is larger than the record that it copies.
func TestDeadLettersHaveRoom(t *testing.T) {
	tests := map[string]struct {
		broker, packed string // the limits that are set, "" if none
		want           int
	}{
		"by default":          {"", "", 1_048_588 + 65_536},
		"of the brokers":      {"5000000", "", 5_000_000 + 65_536},
		"of the packed topic": {"5000000", "8000000", 8_000_000 + 65_536},
		"small packed topic":  {"", "1000", 1_000 + 65_536},
		"as large as can be":  {"", "2147483647", 2_147_483_647},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var opts []kfake.Opt
			if tt.broker != "" {
				opts = append(opts, kfake.BrokerConfigs(map[string]string{"message.max.bytes": tt.broker}))
			}
			c := newCluster(t, append(opts, kfake.NumBrokers(2))...)
			s := kafkaSettings(c)
			k := NewKafka(&s, nil, s.Topics()...)
			defer k.Close()
			if tt.packed != "" {
				res, err := k.Client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
					Topic: s.TopicPacked, NumPartitions: 1, ReplicationFactor: 1,
					ConfigEntries: []kafka.ConfigEntry{{ConfigName: "max.message.bytes", ConfigValue: tt.packed}},
				}}})
				if err = errors.Join(err, res.Errors[s.TopicPacked]); err != nil {
					t.Fatal(err)
				}
				settledTopics(t, k, func(ts []Topic) bool { return ts[0].Exists })
			}
			if _, err := k.CreateTopics(t.Context(), 1, 0); err != nil {
				t.Fatal(err)
			}
			topics := settledTopics(t, k, func(ts []Topic) bool { return !slices.ContainsFunc(ts, func(t Topic) bool { return !t.Exists }) })
			for _, topic := range topics {
				if topic.Setting == "PACKSHIP_TOPIC_DLQ" && topic.largest != tt.want {
					t.Errorf("dead letters: up to %d bytes, want %d", topic.largest, tt.want)
				}
			}
		})
	}
}

// settledTopics waits until the client's cached metadata shows what the test is
// about.
func settledTopics(t *testing.T, k *Kafka, done func([]Topic) bool) []Topic {
	t.Helper()
	for {
		topics, err := k.Topics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if done(topics) {
			return topics
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("the topics stay %+v", topics)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestWrongTopics(t *testing.T) {
	tests := map[string]struct {
		ledger []kafka.ConfigEntry
		parts  int
		omit   string
		want   string
	}{
		"missing input": {parts: 8, omit: "erp.order.packed.v1", want: "^topic erp.order.packed.v1 does not exist; create it with `packship topics create`, or set PACKSHIP_TOPIC_PACKED$"},
		"partitions":    {parts: 3, want: "topic packship.ledger.v1 has 3 partitions instead of 8.*PACKSHIP_LEDGER_PARTITIONS"},
		"compaction": {
			parts: 8, ledger: []kafka.ConfigEntry{{ConfigName: "cleanup.policy", ConfigValue: "compact"}},
			want: "topic packship.ledger.v1 has cleanup.policy=compact, .*set it to delete",
		},
		"both policies": {
			parts: 8, ledger: []kafka.ConfigEntry{{ConfigName: "cleanup.policy", ConfigValue: "compact,delete"}},
			want: "topic packship.ledger.v1 has cleanup.policy=compact,delete",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			s := kafkaSettings(c)
			k := NewKafka(&s, nil)
			defer k.Close()
			var configs []kafka.TopicConfig
			for _, topic := range s.Topics() {
				config := kafka.TopicConfig{Topic: topic, NumPartitions: 1, ReplicationFactor: 1}
				if topic == s.TopicLedger {
					config.NumPartitions = tt.parts
					config.ConfigEntries = append(ledgerConfig(s.LedgerHorizon, 1), tt.ledger...)
				}
				if topic != tt.omit {
					configs = append(configs, config)
				}
			}
			res, err := k.Client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: configs})
			if err != nil {
				t.Fatal(err)
			}
			for topic, err := range res.Errors {
				if err != nil {
					t.Fatalf("%s: %v", topic, err)
				}
			}
			err = k.CheckTopics(t.Context(), RightsToRun)
			wrong, ok := errors.AsType[*TopicsError](err)
			if !ok || len(wrong.Problems) != 1 || !regexp.MustCompile(tt.want).MatchString(wrong.Problems[0]) {
				t.Errorf("got %v, want one problem that matches %q", err, tt.want)
			}
		})
	}
}

func TestRetention(t *testing.T) {
	for ms, want := range map[string]string{"604800000": "168h0m0s", "-1": "unlimited", "x": "x"} {
		if got := retention(ms); got != want {
			t.Errorf("retention(%s): got %s, want %s", ms, got, want)
		}
	}
}
