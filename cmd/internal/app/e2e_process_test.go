package app

import (
	"bytes"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"packship/consumer"
	"packship/upstream/upstreamtest"
)

// binaryDir holds the binary while the tests run.
var binaryDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "packship-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		binaryDir = dir
		defer func() { _ = os.RemoveAll(dir) }()
		flag.Parse()
		if err := parallelTrials(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// executable builds the command, once, when the first test needs it.
var executable = sync.OnceValues(func() (string, error) { return build("packship") })

// crashing builds the command so that it ends where CRASH_AT says.
var crashing = sync.OnceValues(func() (string, error) { return build("packship-crashing", "-tags", "crashpoints") })

func build(name string, flags ...string) (string, error) {
	path := filepath.Join(binaryDir, name)
	args := append([]string{"build", "-o", path}, flags...)
	out, err := exec.Command("go", append(args, "packship/cmd/packship")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
}

// environ returns the settings as a process gets them.
func (s *Settings) environ() []string {
	env := []string{"PATH=" + os.Getenv("PATH")}
	defaults, values := reflect.ValueOf(Defaults()), reflect.ValueOf(*s)
	for _, f := range fields() {
		value := values.FieldByIndex(f.field.Index)
		text := fmt.Sprint(value.Interface())
		if secret, ok := reflect.TypeAssert[Secret](value); ok {
			text = secret.Reveal()
		}
		if !reflect.DeepEqual(value.Interface(), defaults.FieldByIndex(f.field.Index).Interface()) {
			env = append(env, variable(f.name)+"="+text)
		}
	}
	return env
}

// process is a connector in a process of its own.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	log *recorder
}

// spawn starts the real binary.
func (w *world) spawn() *process {
	w.t.Helper()
	path, err := executable()
	if err != nil {
		w.t.Fatal(err)
	}
	p := &process{t: w.t, cmd: exec.Command(path, "run"), log: &recorder{}}
	p.cmd.Env, p.cmd.Stderr = w.settings.environ(), p.log
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
		if w.t.Failed() {
			w.t.Logf("log of process %d:\n%s", p.cmd.Process.Pid, p.log)
		}
	})
	return p
}

// signal sends a signal.
func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// exit waits for the end and returns the exit code, -1 after a kill.
func (p *process) exit() int {
	p.t.Helper()
	err := p.cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		p.t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// TestKill kills the connector amid calls and starts it again: no event is lost,
// and only calls that were under way are repeated.
func TestKill(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: upstreamtest.Latency{Fixed: 300 * time.Millisecond}}, func(s *Settings) {
		s.RatePerSecond = 20
		s.UpstreamTimeout, s.UpstreamSettle = time.Second, 500*time.Millisecond
	})
	const n = 50
	w.produce(orders(1, n)...)
	p := w.spawn()
	w.calls(n / 2)
	p.signal(syscall.SIGKILL)
	p.exit()
	eventually(t, "calls of the dead process ended", func() bool { return w.sim.Stats().InFlight == 0 })
	if got := w.sim.Stats().Calls; got >= n {
		t.Fatalf("all %d calls were made before the kill; this run shows nothing", got)
	}

	published := w.tids()

	second := w.spawn()
	w.everyOrder(n)
	w.committed()
	stats := w.verify()
	if stats.Applied != n {
		t.Errorf("%d applied, want %d", stats.Applied, n)
	}
	if ids := w.identities(); len(ids) != n {
		t.Errorf("%d results, want %d", len(ids), n)
	}
	// An answer that came at the moment of the kill died with the process, so
	// its call may be repeated. One whose result was out may not, and none is
	// repeated twice.
	for i := range n {
		tid := fmt.Sprint(1 + i)
		calls := len(w.sim.Journal().CallsOfOrder(tid))
		if calls > 2 || published[tid] && calls > 1 {
			t.Errorf("order %s was called for %d times; its result was out at the kill: %t", tid, calls, published[tid])
		}
	}
	t.Logf("%d calls for %d orders: %d repeated after the kill", stats.Calls, n, stats.Repeats)
	second.signal(syscall.SIGTERM)
	if code := second.exit(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
}

// tids returns the orders that have a result.
func (w *world) tids() map[string]bool {
	w.t.Helper()
	tids := map[string]bool{}
	for _, topic := range []string{w.settings.TopicShipped, w.settings.TopicFailed} {
		for _, r := range w.read(topic) {
			tids[string(r.Key)] = true
		}
	}
	return tids
}

// everyOrder waits until every order has a result; some may have several.
func (w *world) everyOrder(n int) {
	w.t.Helper()
	eventually(w.t, "a result for every order", func() bool { return len(w.identities()) >= n })
}

// TestTerm stops the connector amid calls: none begins afterwards, those under
// way are answered, written down and published, and the exit code is 0.
func TestTerm(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: upstreamtest.Latency{Fixed: time.Second}}, func(s *Settings) { s.RatePerSecond = 20 })
	w.produce(orders(1, 100)...)
	p := w.spawn()
	w.calls(30)
	if w.sim.Stats().InFlight == 0 {
		t.Fatal("no call is under way; this run shows nothing")
	}
	p.signal(syscall.SIGTERM)
	told := time.Now()
	if code := p.exit(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	stats := w.verify()
	if stats.InFlight != 0 || stats.Applied != stats.Calls {
		t.Errorf("%d in flight, %d of %d calls applied; want none cut off", stats.InFlight, stats.Applied, stats.Calls)
	}
	if got := len(w.identities()); got != stats.Calls {
		t.Errorf("%d results for %d calls", got, stats.Calls)
	}
	calls := w.sim.Journal().Calls()
	late := calls[len(calls)-1].Arrived.Sub(told)
	t.Logf("the last call arrived %s after the signal", late)
	// The contract is 200 ms; the rest is for a busy machine. Without the gate
	// calls would go on for seconds.
	if late > time.Second {
		t.Errorf("a call arrived %s after SIGTERM", late)
	}
}

// TestKilledAmidACall has another replica wait until the call of one that was
// killed can no longer take effect, and say so: it is neither idle, nor done within
// a second.
func TestKilledAmidACall(t *testing.T) {
	if testing.Short() {
		t.Skip("the call of a process that is gone has to be waited for")
	}
	w := newWorld(t, upstreamtest.Options{}, func(s *Settings) { s.UpstreamSettle = 8 * time.Second })
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.Hang, Count: 1})
	w.produce(order(1, ""))
	p := w.spawn()
	w.calls(1)
	p.signal(syscall.SIGKILL)
	p.exit()
	r := w.start()
	var st Status
	r.eventually("waiting for the call of the other", func() bool {
		st = r.c.Status()
		return st.OldestOrder != nil && st.OldestOrder.Step == consumer.StepOther
	})
	if st.Health != HealthWaiting || !strings.HasPrefix(st.Notices[0].Text, "1 order waits until an earlier attempt can no longer take effect") {
		t.Errorf("%s, %+v", st.Health, st.Notices)
	}
	left := st.OldestOrder.Until.Sub(st.Now).Seconds()
	if drain := st.Backlog.DrainSeconds; drain == nil || *drain < left {
		t.Errorf("there are %g s to go, and yet it is drained in %v", left, drain)
	}
	w.await(1, 0, 0)
	r.eventually("idle", func() bool { return r.c.Status().Health == HealthIdle })
}

// TestSecondSignal ends a connector that waits for a call at once.
func TestSecondSignal(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{}, func(s *Settings) { s.UpstreamTimeout = 20 * time.Second })
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.Hang})
	w.produce(order(1, ""))
	p := w.spawn()
	w.calls(1)
	p.signal(syscall.SIGTERM)
	// The first signal has been heard once the gate is closed: then the
	// process waits for the call, which is never answered.
	eventually(t, "the first signal heard", func() bool { return strings.Contains(p.log.String(), "stop asked for") })
	p.signal(syscall.SIGTERM)
	if code := p.exit(); code != 1 {
		t.Errorf("exit code %d after a second signal, want 1", code)
	}
}

// TestProcessExitCodes runs the binary where it cannot start.
func TestProcessExitCodes(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{})
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	right := w.settings
	for name, tt := range map[string]struct {
		change func(*Settings)
		code   int
		want   string
	}{
		"wrong setting": {func(s *Settings) { s.RatePerSecond = -1 }, 2, "packship: settings: PACKSHIP_RATE_PER_SECOND is -1"},
		"missing topic": {func(s *Settings) { s.TopicDLQ += "-not" }, 1, "-not does not exist; create it with `packship topics create`"},
		"wrong ledger":  {func(s *Settings) { s.LedgerPartitions++ }, 1, "PACKSHIP_LEDGER_PARTITIONS"},
		"taken port":    {func(s *Settings) { s.HTTPAddr = taken.Addr().String() }, 1, "PACKSHIP_HTTP_ADDR"},
	} {
		w.settings = right
		tt.change(&w.settings)
		p := w.spawn()
		code := p.exit()
		lines := bytes.Split(bytes.TrimSpace([]byte(p.log.String())), []byte("\n"))
		if last := string(lines[len(lines)-1]); code != tt.code || !strings.HasPrefix(last, "packship: ") || !strings.Contains(last, tt.want) {
			t.Errorf("%s: exit code %d and %q, want %d and %q", name, code, last, tt.code, tt.want)
		}
	}
	w.settings = right
}

// url waits for the HTTP server of the process and returns where it is.
func (p *process) url() string {
	p.t.Helper()
	listening := regexp.MustCompile(`"http server listening","addr":"([^"]+)"`)
	eventually(p.t, "http server listening", func() bool { return listening.MatchString(p.log.String()) })
	return "http://" + listening.FindStringSubmatch(p.log.String())[1]
}

// TestProcessUnusableBroker starts the connector with brokers that are of no
// use. It says why, in the log and at /readyz, goes on trying, and a stop ends
// it at once all the same.
func TestProcessUnusableBroker(t *testing.T) {
	silent := listen(t, func(net.Conn) {})
	slammed := listen(t, func(c net.Conn) { _ = c.Close() })
	ca, stranger := newAuthority(t), newAuthority(t)
	cert, key := ca.sign(t, 2, "127.0.0.1")
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	encrypted := newCluster(t, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}})).ListenAddrs()[0]
	guarded := newCluster(t, kfake.EnableSASL(), kfake.Superuser(scram512, "u", "right")).ListenAddrs()[0]
	strangerFile := filepath.Join(t.TempDir(), "stranger.pem")
	overwrite(t, strangerFile, stranger.pem)
	login := func(password Secret) func(*Settings) {
		return func(s *Settings) {
			s.KafkaSASLMechanism, s.KafkaSASLUsername, s.KafkaSASLPassword = scram512, "u", password
		}
	}
	for name, tt := range map[string]struct {
		broker string
		change func(*Settings)
		want   string
	}{
		"accepts and is silent":      {silent, func(*Settings) {}, "does not answer in time"},
		"is silent at the login":     {silent, login("right"), "does not answer in time"},
		"hangs in the TLS handshake": {silent, func(s *Settings) { s.KafkaTLS = true }, "does not answer in time"},
		"closes at once":             {slammed, func(*Settings) {}, "closes the connection at once; check whether it expects TLS"},
		"unknown authority":          {encrypted, func(s *Settings) { s.KafkaTLS, s.KafkaTLSCaFile = true, strangerFile }, "no known authority has signed"},
		"wrong password":             {guarded, login("wrong"), "refused the login of user"},
		"refuses":                    {"127.0.0.1:1", func(*Settings) {}, "refuses connections"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &world{t: t, settings: Defaults()}
			w.settings.KafkaBrokers, w.settings.UpstreamToken, w.settings.HTTPAddr = List{tt.broker}, testToken, "127.0.0.1:0"
			tt.change(&w.settings)
			p := w.spawn()
			r := &replica{t: t, url: p.url()}
			eventually(t, "the reason at /readyz", func() bool {
				code, body := r.get("/readyz")
				return code == http.StatusServiceUnavailable && strings.Contains(body, tt.want)
			})
			eventually(t, "the reason in the log", func() bool { return strings.Contains(p.log.String(), tt.want) })
			if code, _ := r.get("/healthz"); code != http.StatusOK {
				t.Errorf("/healthz answers %d while kafka is unusable", code)
			}
			p.signal(syscall.SIGTERM)
			if code := p.exit(); code != 0 {
				t.Errorf("exit code %d after SIGTERM, want 0", code)
			}
		})
	}
}

// listen accepts connections until the test ends, and returns where.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
			serve(c)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-over
		for _, c := range conns {
			_ = c.Close()
		}
	})
	return l.Addr().String()
}
