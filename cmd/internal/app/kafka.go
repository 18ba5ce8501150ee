package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// DialContext opens a connection. Tests and the demo replace the network's.
type DialContext = func(ctx context.Context, network, addr string) (net.Conn, error)

const (
	// metadataTTL bounds how long a moved leader is asked for in vain.
	metadataTTL = 500 * time.Millisecond
	// requestTimeout is well above twice the longest poll of a fetch.
	requestTimeout = 5 * time.Second
	// dialTimeout covers TCP and TLS.
	dialTimeout = 3 * time.Second
)

// Kafka holds what the parts need to talk to Kafka: the group session dials with
// the Dialer, everything else goes through the Client. The two share nothing in
// kafka-go, so both are configured here, alike.
type Kafka struct {
	Brokers []string
	Client  *kafka.Client
	Dialer  *kafka.Dialer

	transport *transport
	settings  *Settings
}

// NewKafka prepares the connections; it opens none. Metadata is fetched for the
// given topics only. A nil dial is the network's.
func NewKafka(s *Settings, dial DialContext, topics ...string) *Kafka {
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	// A broker that accepts and then hangs would block a SASL login for ever.
	// The longest honest wait is that of a JoinGroup.
	dial = s.encrypted(capped(dial, s.KafkaRebalanceTimeout+2*requestTimeout))
	mechanism := s.kafkaSASL()
	transport := &transport{Transport: kafka.Transport{
		Dial:           dial,
		DialTimeout:    dialTimeout,
		ClientID:       s.KafkaClientID,
		MetadataTTL:    metadataTTL,
		MetadataTopics: topics,
		SASL:           mechanism,
	}}
	return &Kafka{
		Brokers:   s.KafkaBrokers,
		Client:    &kafka.Client{Addr: kafka.TCP(s.KafkaBrokers...), Timeout: requestTimeout, Transport: transport},
		Dialer:    &kafka.Dialer{ClientID: s.KafkaClientID, DialFunc: dial, Timeout: dialTimeout, SASLMechanism: mechanism},
		transport: transport,
		settings:  s,
	}
}

// Close closes the connections of the Client, which cannot be used any more.
func (k *Kafka) Close() {
	k.transport.closed.Store(true)
	k.transport.CloseIdleConnections()
}

// transport is kafka-go's transport with an end. Without it, a request that was
// late to give up would open connections again after they have been closed, and
// the goroutine that looks after those would never end.
type transport struct {
	kafka.Transport

	closed atomic.Bool
}

// RoundTrip makes one request.
func (t *transport) RoundTrip(ctx context.Context, addr net.Addr, req kafka.Request) (kafka.Response, error) {
	if t.closed.Load() {
		return nil, net.ErrClosed
	}
	defer func() {
		if t.closed.Load() {
			t.CloseIdleConnections()
		}
	}()
	return t.Transport.RoundTrip(ctx, addr, req)
}

// capped returns a dial whose connections never wait longer than limit for a
// read or write, whatever deadline is set, or none.
func capped(dial DialContext, limit time.Duration) DialContext {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c := &cappedConn{Conn: conn, limit: limit}
		return c, c.SetDeadline(time.Time{})
	}
}

type cappedConn struct {
	net.Conn
	limit time.Duration
}

func (c *cappedConn) within(t time.Time) time.Time {
	last := time.Now().Add(c.limit)
	if t.IsZero() || t.After(last) {
		return last
	}
	return t
}

func (c *cappedConn) SetDeadline(t time.Time) error { return c.Conn.SetDeadline(c.within(t)) }

func (c *cappedConn) SetReadDeadline(t time.Time) error { return c.Conn.SetReadDeadline(c.within(t)) }

func (c *cappedConn) SetWriteDeadline(t time.Time) error { return c.Conn.SetWriteDeadline(c.within(t)) }

// encrypted returns a dial whose connections are encrypted as the settings say.
// Their files are read for every connection, so that a renewed certificate needs
// no restart.
func (s *Settings) encrypted(dial DialContext) DialContext {
	if !s.KafkaTLS {
		return dial
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
		if s.KafkaTLSCaFile != "" {
			if config.RootCAs, err = readAuthorities(s.KafkaTLSCaFile); err != nil {
				return nil, &fileError{"KAFKA_TLS_CA_FILE", err}
			}
		}
		if s.KafkaTLSCertFile != "" {
			pair, err := tls.LoadX509KeyPair(s.KafkaTLSCertFile, s.KafkaTLSKeyFile)
			if err != nil {
				return nil, &fileError{"KAFKA_TLS_CERT_FILE", err}
			}
			config.Certificates = []tls.Certificate{pair}
		}
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close() //nolint:errcheck,gosec // the handshake's error counts
			return nil, err
		}
		return secure, nil
	}
}

// kafkaSASL returns how to log in, nil if not at all.
func (s *Settings) kafkaSASL() sasl.Mechanism {
	if s.KafkaSASLMechanism == "" {
		return nil
	}
	return login{s}
}

// Principal is this client as Kafka's rights name it. What a broker makes of a
// client certificate is for its own settings to say: then it is empty.
func (s *Settings) Principal() string {
	if s.KafkaSASLMechanism == "" {
		return ""
	}
	return "User:" + s.KafkaSASLUsername
}

// login is a SASL mechanism that reads its password anew for every connection.
type login struct{ s *Settings }

func (l login) Name() string { return l.s.KafkaSASLMechanism }

func (l login) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	password := l.s.KafkaSASLPassword
	if file := l.s.KafkaSASLPasswordFile; file != "" {
		var err error
		if password, err = readSecret(file); err != nil {
			return nil, nil, &fileError{"KAFKA_SASL_PASSWORD_FILE", err}
		}
	}
	mechanism, err := mechanism(l.s.KafkaSASLMechanism, l.s.KafkaSASLUsername, password.Reveal())
	if err != nil {
		return nil, nil, err
	}
	return mechanism.Start(ctx)
}

func mechanism(name, user, password string) (sasl.Mechanism, error) {
	switch name {
	case "PLAIN":
		return plain.Mechanism{Username: user, Password: password}, nil
	case "SCRAM-SHA-256":
		return scram.Mechanism(scram.SHA256, user, password)
	case "SCRAM-SHA-512":
		return scram.Mechanism(scram.SHA512, user, password)
	default:
		return nil, fmt.Errorf("unknown SASL mechanism %q", name)
	}
}

// fileError is about a file that a setting names and that was usable at the
// start.
type fileError struct {
	name string
	err  error
}

func (e *fileError) Error() string { return variable(e.name) + " " + e.err.Error() }

func (e *fileError) Unwrap() error { return e.err }

// UnreachableError says why no broker can be used, and what to do about it.
type UnreachableError struct {
	Text string
	// Refused is true if a broker was there and turned this client away, so
	// that trying again without a change is of no use.
	Refused bool
	Err     error
}

func (e *UnreachableError) Error() string { return e.Text }

// Unwrap returns the first broker's error.
func (e *UnreachableError) Unwrap() error { return e.Err }

// Probe opens one connection, login included, to the first broker that lets it.
// The error, if any, is an [*UnreachableError].
//
// It dials by itself because the Client answers "Broker Not Available" to a
// wrong password, to an untrusted certificate and to a broker that is down.
func (k *Kafka) Probe(ctx context.Context) error {
	var worst *UnreachableError
	for _, broker := range k.Brokers {
		err := k.try(ctx, broker)
		if err == nil {
			return nil
		}
		// What a broker that answered says is more to the point than the
		// silence of another.
		if e := k.explain(broker, err); worst == nil || e.Refused && !worst.Refused {
			worst = e
		}
	}
	return worst
}

// try opens a connection to a broker and asks it something. It returns when the
// context ends: by itself kafka-go waits for the end of a login for as long as
// the connection lasts.
func (k *Kafka) try(ctx context.Context, broker string) error {
	dialer := *k.Dialer
	dialer.DialFunc = func(dialing context.Context, network, addr string) (net.Conn, error) {
		conn, err := k.Dialer.DialFunc(dialing, network, addr)
		if err != nil {
			return nil, err
		}
		return &endingConn{Conn: conn, stop: context.AfterFunc(ctx, func() { _ = conn.Close() })}, nil
	}
	conn, err := dialer.DialContext(ctx, "tcp", broker)
	if err == nil {
		err = alive(ctx, conn)
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err() // and not that the connection was closed
	}
	return err
}

// endingConn is closed when a context ends, if it has not been before.
type endingConn struct {
	net.Conn
	stop func() bool
}

func (c *endingConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// alive asks the broker a question that it answers only to those who are logged
// in: a connection alone is also taken by a listener that expects a login or
// TLS.
func alive(ctx context.Context, conn *kafka.Conn) error {
	defer conn.Close() //nolint:errcheck // nothing was written that could be lost
	deadline := time.Now().Add(requestTimeout)
	if t, ok := ctx.Deadline(); ok && t.Before(deadline) {
		deadline = t
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	_, err := conn.Brokers()
	return err
}

// Explain makes an [*UnreachableError] of the error of a connection that a broker
// has turned away, and leaves every other error as it is.
func (k *Kafka) Explain(err error) error {
	if e := k.explain("", err); e.Refused {
		return e
	}
	return err
}

func (k *Kafka) explain(broker string, err error) *UnreachableError {
	s := k.settings
	e := &UnreachableError{Err: err}
	say := func(format string, args ...any) *UnreachableError {
		e.Text = strings.TrimSpace("kafka broker "+broker) + " " + fmt.Sprintf(format, args...)
		return e
	}
	var (
		unknownAuthority x509.UnknownAuthorityError
		hostname         x509.HostnameError
		invalid          x509.CertificateInvalidError
		notTLS           tls.RecordHeaderError
		remote           *net.OpError
		dns              *net.DNSError
		own              *fileError
	)
	switch {
	case errors.As(err, &own):
		e.Text = own.Error()
		return e
	case errors.Is(err, kafka.SASLAuthenticationFailed):
		e.Refused = true
		return say("refused the login of user %q by %s; check %s and the password", s.KafkaSASLUsername, s.KafkaSASLMechanism, variable("KAFKA_SASL_USERNAME"))
	case errors.Is(err, kafka.UnsupportedSASLMechanism):
		e.Refused = true
		return say("does not offer %s; set %s to what it offers", s.KafkaSASLMechanism, variable("KAFKA_SASL_MECHANISM"))
	case errors.As(err, &unknownAuthority):
		e.Refused = true
		return say("shows a certificate that no known authority has signed (%v); set %s to the authority's certificate", unknownAuthority, variable("KAFKA_TLS_CA_FILE"))
	case errors.As(err, &hostname):
		e.Refused = true
		return say("shows a certificate for another name (%v); use a name from the certificate in %s", hostname, variable("KAFKA_BROKERS"))
	case errors.As(err, &invalid):
		e.Refused = true
		return say("shows a certificate that is not valid (%v); renew it", invalid)
	case errors.As(err, &notTLS):
		e.Refused = true
		return say("does not speak TLS on this port; set %s to off or use its TLS port", variable("KAFKA_TLS"))
	case errors.As(err, &remote) && remote.Op == "remote error": // an alert of TLS has no type of its own
		e.Refused = true
		return say("broke off the TLS handshake (%v); check %s and %s", remote.Err, variable("KAFKA_TLS_CERT_FILE"), variable("KAFKA_TLS_KEY_FILE"))
	case errors.As(err, &dns):
		return say("has no address (%v); check the name in %s", dns, variable("KAFKA_BROKERS"))
	case errors.Is(err, syscall.ECONNREFUSED):
		return say("refuses connections; check %s and that the broker runs", variable("KAFKA_BROKERS"))
	case errors.Is(err, kafka.IllegalSASLState): // what Kafka says where nobody logs in
		e.Refused = true
		return say("takes no login on this port; leave %s out, or use the port for logins", variable("KAFKA_SASL_MECHANISM"))
	case (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) && bool(s.KafkaTLS):
		return say("closes the connection; check whether this port speaks TLS (%s), and whether it wants a login (%s)", variable("KAFKA_TLS"), variable("KAFKA_SASL_MECHANISM"))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return say("closes the connection at once; check whether it expects TLS (%s) or a login (%s)", variable("KAFKA_TLS"), variable("KAFKA_SASL_MECHANISM"))
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return say("does not answer in time; check %s, the network between, and whether %s fits its port", variable("KAFKA_BROKERS"), variable("KAFKA_TLS"))
	default:
		return say("cannot be used: %v", err)
	}
}

// Await probes until a broker can be used or the context ends. It calls changed
// with every error that differs from the one before, and with nil at the end.
func (k *Kafka) Await(ctx context.Context, changed func(error)) error {
	const pause = 500 * time.Millisecond
	last := ""
	for {
		probe, cancel := context.WithTimeout(ctx, 2*dialTimeout)
		err := k.Probe(probe)
		cancel()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			changed(nil)
			return nil
		}
		if err.Error() != last {
			last = err.Error()
			changed(err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// patience is how long a command waits for Kafka.
const patience = 10 * time.Second

// Connect is for commands: it waits for a broker for ten seconds at most, and
// not at all if one answers and turns it away. The error says what is wrong and
// what to do.
func (k *Kafka) Connect(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last *UnreachableError
	err := k.Await(limit, func(err error) {
		if e, ok := errors.AsType[*UnreachableError](err); ok {
			if last = e; e.Refused {
				cancel()
			}
		}
	})
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case last != nil && last.Refused:
		return last
	case last != nil:
		return fmt.Errorf("%w (tried for %s)", last, patience)
	default:
		return fmt.Errorf("kafka: no broker of %s answers within %s; check %s", k.settings.KafkaBrokers, patience, variable("KAFKA_BROKERS"))
	}
}
