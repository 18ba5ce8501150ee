package app

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"packship/upstream"
)

// check returns what is wrong with values that could be parsed. It reads the
// files that the settings name, so that a missing one is found here and not at
// the first order.
//
// Settings whose names are in broken could not be parsed and have no value that
// says anything of the others.
func (s *Settings) check(parts Part, broken map[string]bool) []Problem {
	c := checker{s: s, broken: broken}
	if parts&PartKafka != 0 {
		c.kafka()
		c.topics()
		c.ledger()
	}
	if parts&PartOrders != 0 {
		c.orders()
	}
	if parts&PartUpstream != 0 {
		c.upstream()
		c.pace()
	}
	if parts&PartServer != 0 {
		c.server()
	}
	return c.problems
}

// checker gathers problems.
type checker struct {
	s        *Settings
	broken   map[string]bool
	problems []Problem
}

func (c *checker) problem(name, format string, args ...any) {
	c.problems = append(c.problems, Problem{variable(name), OneLine(fmt.Sprintf(format, args...))})
}

func (c *checker) oneOf(name, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		c.problem(name, "is %q but must be one of %s", value, strings.Join(allowed, ", "))
	}
}

func (c *checker) atLeast(name string, value, least time.Duration) {
	if value < least {
		c.problem(name, "is %s but must be at least %s", value, least)
	}
}

func (c *checker) count(name string, value, least, most int) {
	if value < least || value > most {
		c.problem(name, "is %d but must be from %d to %d", value, least, most)
	}
}

// secretOrFile reads a secret that may be given directly or as a file.
func (c *checker) secretOrFile(name string, direct Secret, file string) {
	if direct != "" && file != "" {
		c.problem(name, "and %s_FILE are both set; leave one out", variable(name))
		return
	}
	if file != "" {
		if _, err := readSecret(file); err != nil {
			c.problem(name+"_FILE", "%v", err)
		}
		return
	}
	if strings.ContainsFunc(direct.Reveal(), isControl) {
		c.problem(name, "has a control character in it, perhaps a line end; set it again without")
	}
}

func (c *checker) kafka() {
	s := c.s
	if len(s.KafkaBrokers) == 0 {
		c.problem("KAFKA_BROKERS", "is not set; name at least one broker as host:port")
	}
	for _, b := range s.KafkaBrokers {
		if !validHostPort(b, false) {
			c.problem("KAFKA_BROKERS", "has %q in it, which is not host:port", b)
		}
	}
	c.tls()
	c.sasl()
	c.oneOf("KAFKA_START", s.KafkaStart, "first", "last")
	c.atLeast("KAFKA_SESSION_TIMEOUT", s.KafkaSessionTimeout, 6*time.Second)
	c.atLeast("KAFKA_REBALANCE_TIMEOUT", s.KafkaRebalanceTimeout, time.Second)
}

func (c *checker) tls() {
	s := c.s
	files := []struct{ name, value string }{
		{"KAFKA_TLS_CA_FILE", s.KafkaTLSCaFile},
		{"KAFKA_TLS_CERT_FILE", s.KafkaTLSCertFile},
		{"KAFKA_TLS_KEY_FILE", s.KafkaTLSKeyFile},
	}
	if !bool(s.KafkaTLS) && !c.broken["KAFKA_TLS"] {
		for _, f := range files {
			if f.value != "" {
				c.problem(f.name, "is set but %s is off; switch it on or leave the file out", variable("KAFKA_TLS"))
			}
		}
		return
	}
	if s.KafkaTLSCaFile != "" {
		if _, err := readAuthorities(s.KafkaTLSCaFile); err != nil {
			c.problem("KAFKA_TLS_CA_FILE", "%v", err)
		}
	}
	switch {
	case s.KafkaTLSCertFile == "" && s.KafkaTLSKeyFile == "":
	case s.KafkaTLSCertFile == "" || s.KafkaTLSKeyFile == "":
		c.problem("KAFKA_TLS_CERT_FILE", "and %s belong together; set both or neither", variable("KAFKA_TLS_KEY_FILE"))
	default:
		cert, certErr := os.ReadFile(s.KafkaTLSCertFile)
		if certErr != nil {
			c.problem("KAFKA_TLS_CERT_FILE", "cannot be read: %v", certErr)
		}
		key, keyErr := os.ReadFile(s.KafkaTLSKeyFile)
		if keyErr != nil {
			c.problem("KAFKA_TLS_KEY_FILE", "cannot be read: %v", keyErr)
		}
		if certErr != nil || keyErr != nil {
			return
		}
		if _, err := tls.X509KeyPair(cert, key); err != nil {
			c.problem("KAFKA_TLS_CERT_FILE", "cannot be used with its key: %v", err)
		}
	}
}

// readAuthorities reads a PEM file of certificates.
func readAuthorities(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file) //nolint:gosec // an operator's setting names the file
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("names %s, which holds no PEM certificate", file)
	}
	return pool, nil
}

func (c *checker) sasl() {
	s := c.s
	if s.KafkaSASLMechanism == "" {
		for _, f := range []struct{ name, value string }{
			{"KAFKA_SASL_USERNAME", s.KafkaSASLUsername},
			{"KAFKA_SASL_PASSWORD", s.KafkaSASLPassword.Reveal()},
			{"KAFKA_SASL_PASSWORD_FILE", s.KafkaSASLPasswordFile},
		} {
			if f.value != "" {
				c.problem(f.name, "is set but %s is not; set it to PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", variable("KAFKA_SASL_MECHANISM"))
			}
		}
		return
	}
	c.oneOf("KAFKA_SASL_MECHANISM", s.KafkaSASLMechanism, "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
	if s.KafkaSASLUsername == "" {
		c.problem("KAFKA_SASL_USERNAME", "is not set but %s needs it", s.KafkaSASLMechanism)
	}
	if s.KafkaSASLPassword == "" && s.KafkaSASLPasswordFile == "" {
		c.problem("KAFKA_SASL_PASSWORD", "is not set but %s needs it, or %s", s.KafkaSASLMechanism, variable("KAFKA_SASL_PASSWORD_FILE"))
	}
	c.secretOrFile("KAFKA_SASL_PASSWORD", s.KafkaSASLPassword, s.KafkaSASLPasswordFile)
}

var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

func (c *checker) topics() {
	seen := map[string]string{}
	for _, t := range c.s.topicSettings() {
		if !topicName.MatchString(t.topic) || t.topic == "." || t.topic == ".." {
			c.problem(t.name, "is %q, which Kafka does not allow as a topic name", t.topic)
		}
		if other, ok := seen[t.topic]; ok {
			c.problem(t.name, "is the same topic as %s; every kind of event needs its own", other)
			continue
		}
		seen[t.topic] = variable(t.name)
	}
}

type topicSetting struct{ name, topic string }

func (s *Settings) topicSettings() []topicSetting {
	return []topicSetting{
		{"TOPIC_PACKED", s.TopicPacked},
		{"TOPIC_SHIPPED", s.TopicShipped},
		{"TOPIC_FAILED", s.TopicFailed},
		{"TOPIC_DLQ", s.TopicDLQ},
		{"TOPIC_LEDGER", s.TopicLedger},
	}
}

func (c *checker) ledger() {
	s := c.s
	c.count("LEDGER_PARTITIONS", s.LedgerPartitions, 1, 1000)
	if open := s.StartBy() + s.UpstreamTimeout + s.UpstreamSettle; s.LedgerHorizon <= open {
		c.problem("LEDGER_HORIZON", "is %s but must be longer than the %s that one call can stay open", s.LedgerHorizon, open)
	}
}

func (c *checker) upstream() {
	s := c.s
	c.oneOf("ASSIGNMENT", s.Assignment, "single", "spread")
	if u, err := url.Parse(s.UpstreamURL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		c.problem("UPSTREAM_URL", "is not an absolute http or https URL")
	} else if u.User != nil || u.Fragment != "" {
		c.problem("UPSTREAM_URL", "has a user or a fragment in it; leave it out")
	}
	if s.UpstreamToken == "" && s.UpstreamTokenFile == "" && s.AccountsFile == "" {
		c.problem("UPSTREAM_TOKEN", "is not set; set it, or %s, or %s", variable("UPSTREAM_TOKEN_FILE"), variable("ACCOUNTS_FILE"))
	}
	c.secretOrFile("UPSTREAM_TOKEN", s.UpstreamToken, s.UpstreamTokenFile)
	if strings.ContainsFunc(s.UpstreamToken.Reveal(), isSpace) {
		c.problem("UPSTREAM_TOKEN", "has white space in it; set it again without")
	}
	c.atLeast("UPSTREAM_TIMEOUT", s.UpstreamTimeout, 10*time.Millisecond)
	c.atLeast("UPSTREAM_SETTLE", s.UpstreamSettle, 0)
	if s.Given("UPSTREAM_VVTYPE") {
		c.count("UPSTREAM_VVTYPE", s.UpstreamVvtype, 1, 4)
	}
	c.oneOf("UNKNOWN_SHOP", s.UnknownShop, "default", "fail", "skip")
	c.oneOf("UNKNOWN_POLICY", s.UnknownPolicy, "reconcile", "park")
	_, problems := s.accounts()
	c.problems = append(c.problems, problems...)
}

func (c *checker) orders() {
	c.oneOf("WAYBILL_CHECK", c.s.WaybillCheck, "off", "warn", "strict")
	if _, err := c.s.carriers(); err != nil {
		c.problem("CARRIERS_FILE", "%v", err)
	}
}

// carriers reads the carrier catalogue, nil for the built-in one.
func (s *Settings) carriers() (*upstream.Catalogue, error) {
	if s.CarriersFile == "" {
		return nil, nil //nolint:nilnil // nil is the built-in catalogue
	}
	f, err := os.Open(s.CarriersFile)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	catalogue, err := upstream.ParseCatalogue(f)
	if err != nil {
		return nil, fmt.Errorf("cannot be used: %w", err)
	}
	return catalogue, nil
}

// A rate within these bounds has a distance between two calls that a duration
// can say.
const minRate, maxRate = 1e-4, 1e6

// validRate is false for what is no number, too.
func validRate(r float64) bool { return r >= minRate && r <= maxRate }

func (c *checker) pace() {
	s := c.s
	if !validRate(s.RatePerSecond) {
		c.problem("RATE_PER_SECOND", "is %v but must be from %g to %g", s.RatePerSecond, minRate, maxRate)
	}
	if s.RateJitter < 0 || s.RateJitter >= time.Second {
		c.problem("RATE_JITTER", "is %s but must be from 0 to below 1s", s.RateJitter)
	}
	c.count("MAX_IN_FLIGHT", s.MaxInFlight, 1, 100_000)
	c.count("BREAKER_FAILURES", s.BreakerFailures, 1, 1_000_000)
	c.atLeast("BREAKER_OPEN_FOR", s.BreakerOpenFor, time.Millisecond)
	c.count("RETRY_MAX", s.RetryMax, 0, 1000)
	c.atLeast("RETRY_BACKOFF", s.RetryBackoff, time.Millisecond)
	if s.RetryBackoffMax < s.RetryBackoff {
		c.problem("RETRY_BACKOFF_MAX", "is %s, below %s, which is %s", s.RetryBackoffMax, variable("RETRY_BACKOFF"), s.RetryBackoff)
	}
}

func (c *checker) server() {
	s := c.s
	if !validHostPort(s.HTTPAddr, true) {
		c.problem("HTTP_ADDR", "is %q, which is not host:port or :port", s.HTTPAddr)
	}
	c.secretOrFile("ADMIN_TOKEN", s.AdminToken, s.AdminTokenFile)
	c.oneOf("LOG_LEVEL", s.LogLevel, "debug", "info", "warn", "error")
	c.oneOf("LOG_FORMAT", s.LogFormat, "json", "text")
	c.atLeast("SHUTDOWN_TIMEOUT", s.ShutdownTimeout, time.Second)
}

// readSecret reads a secret from a file, without the line end that editors add.
func readSecret(file string) (Secret, error) {
	b, err := os.ReadFile(file) //nolint:gosec // an operator's setting names the file
	if err != nil {
		return "", fmt.Errorf("cannot be read: %w", err)
	}
	secret := strings.TrimSpace(string(b))
	if secret == "" {
		return "", fmt.Errorf("names %s, which is empty", file)
	}
	return Secret(secret), nil
}

// validHostPort reports whether an address is host:port. One to listen on may
// leave out the host, and leave the port to the system by 0.
func validHostPort(addr string, listen bool) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" && !listen {
		return false
	}
	n, err := strconv.Atoi(port)
	return err == nil && n <= 65535 && (n > 0 || n == 0 && listen)
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

func isSpace(r rune) bool { return r == ' ' || isControl(r) }
