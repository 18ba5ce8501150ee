package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"packship/upstream/upstreamtest"
)

// mount is a folder of secrets as the kubelet makes it: the files are links
// through one link, which is exchanged for all of them at once.
type mount struct {
	t     *testing.T
	dir   string
	files map[string]string
}

func newMount(t *testing.T, files map[string]string) *mount {
	t.Helper()
	m := &mount{t: t, dir: t.TempDir(), files: map[string]string{}}
	m.swap(files)
	return m
}

// path is the name of a file under which the connector knows it.
func (m *mount) path(name string) string { return filepath.Join(m.dir, name) }

// swap replaces some of the files.
func (m *mount) swap(files map[string]string) {
	m.t.Helper()
	maps.Copy(m.files, files)
	version, err := os.MkdirTemp(m.dir, "..")
	if err != nil {
		m.t.Fatal(err)
	}
	for name, text := range m.files {
		overwrite(m.t, filepath.Join(version, name), []byte(text))
		if err := os.Symlink(filepath.Join("..data", name), m.path(name)); err != nil && !os.IsExist(err) {
			m.t.Fatal(err)
		}
	}
	before, _ := os.Readlink(m.path("..data")) // nothing the first time
	if err := os.Symlink(filepath.Base(version), m.path("..tmp")); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(m.path("..tmp"), m.path("..data")); err != nil {
		m.t.Fatal(err)
	}
	if before != "" {
		if err := os.RemoveAll(m.path(before)); err != nil {
			m.t.Fatal(err)
		}
	}
}

// cutter dials and can break all that it has dialled.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (c *cutter) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, addr)
	if err == nil {
		c.mu.Lock()
		c.conns = append(c.conns, conn)
		c.mu.Unlock()
	}
	return conn, err
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	c.conns = nil
}

// rotation is a change of something that both sides must know. What the broker
// changes and the file, in either order, leave a time in which it lets nobody
// in.
type rotation struct {
	name   string
	first  func()
	second func()
	// said is what the log says in between, "" if there is nothing to say.
	said string
}

// rotate makes the changes while orders flow, and breaks all connections in
// each of them. Nobody restarts anything, no order is lost, and none is called
// for twice.
func (w *world) rotate(steps ...rotation) {
	w.t.Helper()
	t := w.t
	const perStep = 20
	n := (len(steps) + 2) * perStep
	w.produce(orders(1, n)...)
	network, log := &cutter{}, &recorder{}
	c, err := New(w.settings, Options{KafkaDial: network.dial, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the connector ended with %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", log)
		}
	})
	for i, s := range steps {
		w.calls((i + 1) * perStep)
		s.first()
		network.cut()
		if s.said != "" {
			eventually(t, s.name+": the log says "+s.said, func() bool { return strings.Contains(log.String(), s.said) })
		}
		s.second()
		network.cut()
	}
	w.everyOrder(n)
	w.committed()
	w.calledOnce(n)
	select {
	case err := <-ended:
		ended <- nil
		t.Errorf("the connector has ended: %v", err)
	default:
	}
}

// slowly is a world in which the orders do not run out during a rotation.
func slowly(s *Settings) { s.RatePerSecond = 20 }

// TestRotation changes password, client certificate and the broker's
// certificate with its authority, on an embedded broker.
func TestRotation(t *testing.T) {
	if os.Getenv("PACKSHIP_TEST_BROKERS") != "" {
		t.Skip("needs a broker that can be given any certificate; see TestSecureRotation")
	}
	brokers, nextBrokers, clients, nextClients, admins := newAuthority(t), newAuthority(t), newAuthority(t), newAuthority(t), newAuthority(t)
	var mu sync.Mutex
	shown, trusted := brokers, clients // by the broker; guarded by mu
	config := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		pool := x509.NewCertPool()
		pool.AddCert(trusted.cert)
		pool.AddCert(admins.cert)
		cert, key := shown.sign(t, 9, "127.0.0.1")
		pair, err := tls.X509KeyPair(cert, key)
		return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}, err
	}}
	secure := newCluster(t, kfake.TLS(config), kfake.EnableSASL(), kfake.Superuser(scram512, "admin", "admin"))
	pair := func(a *authority) map[string]string {
		cert, key := a.sign(t, 7)
		return map[string]string{"tls.crt": string(cert), "tls.key": string(key)}
	}
	files := pair(admins)
	files["ca.pem"] = string(brokers.pem) + string(nextBrokers.pem)
	admin := newMount(t, files)
	w := newWorld(t, upstreamtest.Options{Latency: quick}, slowly, func(s *Settings) {
		s.encryptTo(secure.ListenAddrs()[0], admin.path("ca.pem"))
		s.KafkaTLSCertFile, s.KafkaTLSKeyFile = admin.path("tls.crt"), admin.path("tls.key")
		s.KafkaSASLMechanism, s.KafkaSASLUsername, s.KafkaSASLPassword = scram512, "admin", "admin"
	})
	own := w.settings
	w.kafka = NewKafka(&own, nil, own.Topics()...)
	t.Cleanup(w.kafka.Close)

	files = pair(clients)
	files["ca.pem"], files["password"] = string(brokers.pem), "first\n"
	m := newMount(t, files)
	s := &w.settings
	s.KafkaTLSCaFile, s.KafkaTLSCertFile, s.KafkaTLSKeyFile = m.path("ca.pem"), m.path("tls.crt"), m.path("tls.key")
	s.KafkaSASLUsername, s.KafkaSASLPassword, s.KafkaSASLPasswordFile = "rotating", "", m.path("password")
	w.changePassword("rotating", "first")

	broker := func(change func()) func() {
		return func() {
			mu.Lock()
			defer mu.Unlock()
			change()
		}
	}
	swap := func(files map[string]string) func() { return func() { m.swap(files) } }
	w.rotate(
		rotation{"password, broker first", func() { w.changePassword("rotating", "second") }, swap(map[string]string{"password": "second"}), "refused the login of user"},
		rotation{"password, file first", swap(map[string]string{"password": "third"}), func() { w.changePassword("rotating", "third") }, ""},
		rotation{"authority of the brokers", broker(func() { shown = nextBrokers }), swap(map[string]string{"ca.pem": string(nextBrokers.pem)}), "no known authority has signed"},
		rotation{"client certificate", broker(func() { trusted = nextClients }), swap(pair(nextClients)), "broke off the TLS handshake"},
	)
}

// TestSecureRotation does the same to a real broker: the password and the
// broker's certificate at its listener for logins, the client certificate at the
// one that asks for it.
func TestSecureRotation(t *testing.T) {
	needSecured(t)
	t.Run("login", func(t *testing.T) {
		w := newWorld(t, upstreamtest.Options{Latency: quick}, slowly)
		s := &w.settings
		user := s.KafkaSASLUsername
		ca, err := os.ReadFile(os.Getenv("PACKSHIP_TEST_SECURE_CA"))
		if err != nil {
			t.Fatal(err)
		}
		m := newMount(t, map[string]string{"password": "first password\n", "ca.pem": string(ca)})
		s.KafkaTLSCaFile, s.KafkaSASLPasswordFile = m.path("ca.pem"), m.path("password")
		store, nextCA := newKeyStore(t)
		swap := func(files map[string]string) func() { return func() { m.swap(files) } }
		w.rotate(
			rotation{"password, broker first", func() { w.setPassword(user, "second") }, swap(map[string]string{"password": "second"}), "refused the login of user"},
			rotation{"password, file first", swap(map[string]string{"password": "third"}), func() { w.setPassword(user, "third") }, ""},
			rotation{"authority of the broker", func() {
				w.configureBroker(map[string]string{
					"listener.name.sasl_ssl.ssl.keystore.location": store,
					"listener.name.sasl_ssl.ssl.keystore.password": storePassword,
					"listener.name.sasl_ssl.ssl.key.password":      storePassword,
				})
			}, swap(map[string]string{"ca.pem": nextCA}), "no known authority has signed"},
		)
	})
	t.Run("client certificate", func(t *testing.T) {
		w := newWorld(t, upstreamtest.Options{Latency: quick}, slowly)
		s := &w.settings
		const principal = "User:CN=packship test"
		rights := w.documentedRights()
		w.grant(principal, rights...)
		t.Cleanup(func() { w.revoke(principal, rights...) })
		clients, nextClients := newAuthority(t), newAuthority(t)
		w.trustClientsOf(clients)
		pair := func(a *authority) map[string]string {
			cert, key := a.sign(t, 7)
			return map[string]string{"tls.crt": string(cert), "tls.key": string(key)}
		}
		m := newMount(t, pair(clients))
		s.encryptTo(os.Getenv("PACKSHIP_TEST_SECURE_CERT_BROKERS"), os.Getenv("PACKSHIP_TEST_SECURE_CA"))
		s.KafkaSASLMechanism, s.KafkaSASLUsername, s.KafkaSASLPasswordFile = "", "", ""
		s.KafkaTLSCertFile, s.KafkaTLSKeyFile = m.path("tls.crt"), m.path("tls.key")
		w.rotate(
			rotation{"same authority", func() { m.swap(pair(clients)) }, func() {}, ""},
			rotation{"another authority", func() { w.trustClientsOf(nextClients) }, func() { m.swap(pair(nextClients)) }, "broke off the TLS handshake"},
		)
	})
}

const storePassword = "store-password"

// newKeyStore makes a broker's key with a certificate signed by itself, as a
// file that Kafka reads, and returns the certificate.
func newKeyStore(t *testing.T) (file, cert string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "broker.p12")
	keytool := func(args ...string) string {
		args = append(args, "-keystore", file, "-storepass", storePassword, "-alias", "broker")
		out, err := exec.CommandContext(t.Context(), "keytool", args...).Output()
		if err != nil {
			t.Fatalf("keytool: %v\n%s", err, out)
		}
		return string(out)
	}
	// Kafka wants the names of the certificate that is replaced.
	keytool("-genkeypair", "-keyalg", "EC", "-groupname", "secp256r1", "-validity", "30", "-storetype", "PKCS12",
		"-dname", "CN=localhost", "-ext", "san=dns:localhost,ip:127.0.0.1", "-ext", "bc:c=ca:true")
	return file, keytool("-exportcert", "-rfc")
}
