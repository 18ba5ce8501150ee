package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
)

// newCluster starts an embedded broker.
func newCluster(t *testing.T, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// kafkaSettings are the defaults with the brokers of a cluster.
func kafkaSettings(c *kfake.Cluster) Settings {
	s := Defaults()
	s.KafkaBrokers = c.ListenAddrs()
	return s
}

// authority signs certificates for the tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: rand.Text()}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// sign returns a certificate and its key, both PEM.
func (a *authority) sign(t *testing.T, serial int64, names ...string) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "packship test"}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if slices.Contains(names, "127.0.0.1") {
		template.IPAddresses, template.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, nil
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func overwrite(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestProbeExplains checks that each way in which a connection can be wrong is
// told by its name and with a remedy, through every kind of error that kafka-go
// makes of it.
func TestProbeExplains(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	cert, key := ca.sign(t, 2, "127.0.0.1")
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	otherCert, otherKey := ca.sign(t, 3, "kafka.example")
	otherPair, err := tls.X509KeyPair(otherCert, otherKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	caFile, strangerFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "stranger.pem")
	overwrite(t, caFile, ca.pem)
	overwrite(t, strangerFile, stranger.pem)

	plain := newCluster(t)
	plainLogin := newCluster(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "u", "right"))
	scram := newCluster(t, kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-256", "u", "right"), kfake.Superuser("SCRAM-SHA-512", "u", "right"))
	encrypted := newCluster(t, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}}))
	choosy := newCluster(t, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert}))
	misnamed := newCluster(t, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{otherPair}}))

	login := func(mechanism, password string) func(*Settings) {
		return func(s *Settings) {
			s.KafkaSASLMechanism, s.KafkaSASLUsername, s.KafkaSASLPassword = mechanism, "u", Secret(password)
		}
	}
	trust := func(file string) func(*Settings) {
		return func(s *Settings) { s.KafkaTLS, s.KafkaTLSCaFile = true, file }
	}
	tests := map[string]struct {
		cluster *kfake.Cluster
		change  func(*Settings)
		want    string // "" for success
		refused bool
	}{
		"plain text":              {cluster: plain},
		"PLAIN":                   {cluster: plainLogin, change: login("PLAIN", "right")},
		"SCRAM-SHA-256":           {cluster: scram, change: login("SCRAM-SHA-256", "right")},
		"SCRAM-SHA-512":           {cluster: scram, change: login("SCRAM-SHA-512", "right")},
		"TLS":                     {cluster: encrypted, change: trust(caFile)},
		"wrong PLAIN password":    {plainLogin, login("PLAIN", "wrong"), `refused the login of user "u" by PLAIN; check PACKSHIP_KAFKA_SASL_USERNAME`, true},
		"wrong SCRAM password":    {scram, login("SCRAM-SHA-256", "wrong"), `refused the login of user "u" by SCRAM-SHA-256`, true},
		"mechanism not offered":   {plainLogin, login("SCRAM-SHA-512", "right"), `does not offer SCRAM-SHA-512|refused the login`, true},
		"no login where expected": {plainLogin, nil, `closes the connection at once; check whether it expects TLS .* or a login`, false},
		"unknown authority":       {encrypted, trust(strangerFile), `no known authority has signed .*PACKSHIP_KAFKA_TLS_CA_FILE`, true},
		"system authorities":      {encrypted, trust(""), `no known authority has signed`, true},
		"no client certificate":   {choosy, trust(caFile), `broke off the TLS handshake .*check PACKSHIP_KAFKA_TLS_CERT_FILE`, true},
		"another name":            {misnamed, trust(caFile), `certificate for another name`, true},
		"TLS to a plain port":     {plain, trust(caFile), `closes the connection|does not speak TLS|does not answer in time.*PACKSHIP_KAFKA_TLS`, false},
		"plain to a TLS port":     {encrypted, nil, `closes the connection at once; check whether it expects TLS`, false},
		"unreachable": {
			plain, func(s *Settings) { s.KafkaBrokers = List{"127.0.0.1:1"} },
			`kafka broker 127.0.0.1:1 refuses connections; check PACKSHIP_KAFKA_BROKERS`, false,
		},
		"no such host": {plain, func(s *Settings) { s.KafkaBrokers = List{"no.such.host.invalid:1"} }, `has no address|cannot be used|does not answer`, false},
		"second broker": {
			plain, func(s *Settings) { s.KafkaBrokers = append(List{"127.0.0.1:1"}, s.KafkaBrokers...) }, "", false,
		},
		"password file gone": {
			plainLogin, func(s *Settings) {
				login("PLAIN", "")(s)
				s.KafkaSASLPasswordFile = filepath.Join(dir, "missing")
			}, `PACKSHIP_KAFKA_SASL_PASSWORD_FILE cannot be read`, false,
		},
		"authorities gone": {encrypted, trust(filepath.Join(dir, "missing")), `PACKSHIP_KAFKA_TLS_CA_FILE cannot be read`, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := kafkaSettings(tt.cluster)
			if tt.change != nil {
				tt.change(&s)
			}
			k := NewKafka(&s, nil)
			defer k.Close()
			err := k.Probe(t.Context())
			if tt.want == "" {
				if err != nil {
					t.Fatalf("got %v, want success (%v)", err, errors.Unwrap(err))
				}
				if _, err := k.Client.Metadata(t.Context(), &kafka.MetadataRequest{}); err != nil {
					t.Errorf("the dialer gets in but the client does not: %v", err)
				}
				return
			}
			e, ok := errors.AsType[*UnreachableError](err)
			if !ok {
				t.Fatalf("got %v, want an UnreachableError", err)
			}
			if !regexp.MustCompile(tt.want).MatchString(e.Text) {
				t.Errorf("got %q (%v), want a match of %q", e.Text, e.Err, tt.want)
			}
			if e.Refused != tt.refused {
				t.Errorf("refused: got %t, want %t", e.Refused, tt.refused)
			}
		})
	}
}

// TestWrongPort checks what is said of ports that want less than they are given,
// in the way in which Apache Kafka turns that away: the embedded broker has
// another.
func TestWrongPort(t *testing.T) {
	const tlsWord, loginWord = "check whether this port speaks TLS (PACKSHIP_KAFKA_TLS)", "takes no login on this port; leave PACKSHIP_KAFKA_SASL_MECHANISM out"
	for name, tt := range map[string]struct {
		encrypted bool
		err       error
		want      string
		refused   bool
	}{
		"TLS to a plain port":             {true, io.EOF, tlsWord, false},
		"TLS to a plain port, reset":      {true, &net.OpError{Op: "read", Err: syscall.ECONNRESET}, tlsWord, false},
		"plain to a TLS port":             {false, io.EOF, "check whether it expects TLS (PACKSHIP_KAFKA_TLS)", false},
		"login where nobody logs in":      {false, kafka.IllegalSASLState, loginWord, true},
		"login where nobody logs in, TLS": {true, kafka.IllegalSASLState, loginWord, true},
	} {
		s := Defaults()
		s.KafkaBrokers, s.KafkaTLS = List{"b:1"}, Switch(tt.encrypted)
		k := NewKafka(&s, nil)
		e := k.explain("b:1", fmt.Errorf("dial: %w", tt.err))
		k.Close()
		if !strings.Contains(e.Text, tt.want) || e.Refused != tt.refused {
			t.Errorf("%s: %q, refused %t, want %q", name, e.Text, e.Refused, tt.want)
		}
	}
}

// TestFilesAreReadAgain renews everything on disk between two connections of
// one Kafka.
func TestFilesAreReadAgain(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	var serving *authority
	var seen []int64 // the serial numbers of the clients' certificates
	config := &tls.Config{
		ClientAuth: tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, key := serving.sign(t, 9, "127.0.0.1")
			pair, err := tls.X509KeyPair(cert, key)
			return &pair, err
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			seen = append(seen, state.PeerCertificates[0].SerialNumber.Int64())
			return nil
		},
	}
	c := newCluster(t, kfake.TLS(config), kfake.EnableSASL(), kfake.Superuser("PLAIN", "u", "one"))
	dir := t.TempDir()
	s := kafkaSettings(c)
	s.KafkaTLS = true
	s.KafkaTLSCaFile, s.KafkaTLSCertFile, s.KafkaTLSKeyFile = filepath.Join(dir, "ca"), filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	s.KafkaSASLMechanism, s.KafkaSASLUsername, s.KafkaSASLPasswordFile = "PLAIN", "u", filepath.Join(dir, "password")
	write := func(a *authority, serial int64, password string) {
		cert, key := a.sign(t, serial)
		overwrite(t, s.KafkaTLSCaFile, a.pem)
		overwrite(t, s.KafkaTLSCertFile, cert)
		overwrite(t, s.KafkaTLSKeyFile, key)
		overwrite(t, s.KafkaSASLPasswordFile, []byte(password+"\n"))
	}
	k := NewKafka(&s, nil)
	defer k.Close()

	serving = first
	write(first, 21, "wrong")
	if err := k.Probe(t.Context()); err == nil {
		t.Error("a wrong password got in")
	}
	write(first, 22, "one")
	if err := k.Probe(t.Context()); err != nil {
		t.Errorf("with the right password: %v (%v)", err, errors.Unwrap(err))
	}
	serving = second
	if err := k.Probe(t.Context()); err == nil {
		t.Error("a certificate of an unknown authority was accepted")
	}
	write(second, 23, "one")
	if err := k.Probe(t.Context()); err != nil {
		t.Errorf("with the new authority: %v (%v)", err, errors.Unwrap(err))
	}
	if got := slices.Compact(seen); !slices.Contains(got, 22) || !slices.Contains(got, 23) {
		t.Errorf("the broker saw the client certificates %v, want 22 and 23 among them", got)
	}
}

// TestHungBrokerDoesNotBlock dials a peer that takes the connection and never
// says a word, which blocks kafka-go's SASL login for ever without the cap.
func TestHungBrokerDoesNotBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer func() { _ = server.Close() }()
		go io.Copy(io.Discard, server) //nolint:errcheck // ends with the pipe
		s := Defaults()
		s.KafkaBrokers = List{"hung:9092"}
		s.KafkaSASLMechanism, s.KafkaSASLUsername, s.KafkaSASLPassword = "PLAIN", "u", "p"
		k := NewKafka(&s, func(context.Context, string, string) (net.Conn, error) { return client, nil })
		defer k.Close()
		begin := time.Now()
		limit, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		err := k.Probe(limit)
		if e, ok := errors.AsType[*UnreachableError](err); !ok || !strings.Contains(e.Error(), "does not answer in time") {
			t.Errorf("a silent peer: got %v, want that it does not answer in time", err)
		}
		if got := time.Since(begin); got != 7*time.Second {
			t.Errorf("gave up after %s, want the context's 7s", got)
		}
	})
}

func TestCappedConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = time.Minute
		for name, set := range map[string]func(net.Conn) error{
			"none":  func(net.Conn) error { return nil },
			"reset": func(c net.Conn) error { return c.SetDeadline(time.Time{}) },
			"later": func(c net.Conn) error { return c.SetReadDeadline(time.Now().Add(time.Hour)) },
		} {
			client, server := net.Pipe()
			c, err := capped(func(context.Context, string, string) (net.Conn, error) { return client, nil }, limit)(t.Context(), "tcp", "x")
			if err != nil {
				t.Fatal(err)
			}
			if err := set(c); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			_, err = c.Read(make([]byte, 1))
			if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != limit {
				t.Errorf("deadline %s: got %v after %s, want a timeout after %s", name, err, time.Since(begin), limit)
			}
			if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			begin = time.Now()
			if _, err = c.Read(make([]byte, 1)); err == nil || time.Since(begin) != time.Second {
				t.Errorf("a shorter deadline: got %v after %s, want a timeout after 1s", err, time.Since(begin))
			}
			client.Close() //nolint:errcheck // a pipe
			server.Close() //nolint:errcheck // a pipe
		}
	})
}

// TestConnectGivesUp checks the patience of a command, and that it has none with
// a broker that turns it away.
func TestConnectGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := Defaults()
		s.KafkaBrokers = List{"10.0.0.1:9092"}
		refuse := func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no route") }
		k := NewKafka(&s, refuse)
		defer k.Close()
		begin := time.Now()
		err := k.Connect(t.Context())
		if _, ok := errors.AsType[*UnreachableError](err); !ok || time.Since(begin) != patience {
			t.Errorf("got %v after %s, want to give up after %s", err, time.Since(begin), patience)
		}
	})
	c := newCluster(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "u", "right"))
	s := kafkaSettings(c)
	s.KafkaSASLMechanism, s.KafkaSASLUsername, s.KafkaSASLPassword = "PLAIN", "u", "wrong"
	k := NewKafka(&s, nil)
	defer k.Close()
	limit, cancel := context.WithTimeout(t.Context(), patience/2)
	defer cancel()
	if e, ok := errors.AsType[*UnreachableError](k.Connect(limit)); !ok || !e.Refused {
		t.Errorf("a wrong password was not reported at once")
	}
}

// TestAwaitSpeaksOncePerChange lets a broker change its mind.
func TestAwaitSpeaksOncePerChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := []string{"no route", "no route", "no route", "no power", "no power", "no route"}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		dials := 0
		s := Defaults()
		s.KafkaBrokers = List{"10.0.0.1:9092"}
		k := NewKafka(&s, func(context.Context, string, string) (net.Conn, error) {
			if dials == len(answers) {
				cancel()
				return nil, context.Canceled
			}
			dials++
			return nil, errors.New(answers[dials-1])
		})
		defer k.Close()
		var said []string
		err := k.Await(ctx, func(err error) { said = append(said, regexp.MustCompile(`no (route|power)`).FindString(err.Error())) })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want the context's error", err)
		}
		if diff := cmp.Diff([]string{"no route", "no power", "no route"}, said); diff != "" {
			t.Errorf("said (-want +got):\n%s", diff)
		}
	})
}
