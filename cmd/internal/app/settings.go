package app

import (
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Prefix is what the name of every environment variable of packship begins with.
const Prefix = "PACKSHIP"

// Settings is everything that an operator can set. Each field is read from the
// environment variable that envconfig makes of its name: KafkaGroupID from
// PACKSHIP_KAFKA_GROUP_ID. Fields spell Ca and Vvtype that way because their
// names would be split differently otherwise.
//
// The fields have no envconfig tag on purpose: with one, envconfig also reads
// the variable without the prefix, and a LOG_LEVEL that is meant for somebody
// else would take effect here.
type Settings struct {
	KafkaBrokers          List          `split_words:"true" needed:"true" desc:"Kafka brokers to begin with, as host:port, separated by commas"`
	KafkaGroupID          string        `split_words:"true" default:"packship" desc:"consumer group; all replicas of one deployment share it"`
	KafkaClientID         string        `split_words:"true" default:"packship" desc:"name under which the brokers log this client"`
	KafkaTLS              Switch        `split_words:"true" default:"off" desc:"whether connections to Kafka are encrypted: on or off"`
	KafkaTLSCaFile        string        `split_words:"true" default:"" desc:"PEM file of the authorities that sign the brokers' certificates, read again when it changes; unset: those of the system"`
	KafkaTLSCertFile      string        `split_words:"true" default:"" desc:"PEM file of the client certificate, read again when it changes"`
	KafkaTLSKeyFile       string        `split_words:"true" default:"" desc:"PEM file of the client certificate's key, read again when it changes"`
	KafkaSASLMechanism    string        `split_words:"true" default:"" desc:"how to log in to Kafka: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; unset: no login"`
	KafkaSASLUsername     string        `split_words:"true" default:"" desc:"user name of the login to Kafka"`
	KafkaSASLPassword     Secret        `split_words:"true" default:"" desc:"password of the login to Kafka"`
	KafkaSASLPasswordFile string        `split_words:"true" default:"" desc:"file that holds the password, read again for every connection"`
	KafkaStart            string        `split_words:"true" default:"first" desc:"where a group without offsets begins: first or last"`
	KafkaSessionTimeout   time.Duration `split_words:"true" default:"10s" desc:"after this long without a heartbeat a replica is taken for dead; at least 6s"`
	KafkaRebalanceTimeout time.Duration `split_words:"true" default:"30s" desc:"how long a rebalance waits for a replica to rejoin; the same on all replicas"`

	TopicPacked  string `split_words:"true" default:"erp.order.packed.v1" desc:"topic of the packed events, the input"`
	TopicShipped string `split_words:"true" default:"erp.order.shipped.v1" desc:"topic of the shipped events"`
	TopicFailed  string `split_words:"true" default:"erp.order.shipment-failed.v1" desc:"topic of the shipment-failed events"`
	TopicDLQ     string `split_words:"true" default:"erp.order.packed.dlq.v1" desc:"topic of the records that are no packed event"`
	TopicLedger  string `split_words:"true" default:"packship.ledger.v1" desc:"topic of packship's own memory"`

	Assignment string `split_words:"true" default:"single" desc:"single: one replica sends, the others are hot standbys; spread: replicas share partitions and rate"`

	UpstreamURL       string        `split_words:"true" default:"http://api.vv-tool.com/tool/erps/send" desc:"full URL of the shipping API"`
	UpstreamToken     Secret        `split_words:"true" default:"" desc:"bearer token of the shipping API; needed unless there is a token file or an accounts file"`
	UpstreamTokenFile string        `split_words:"true" default:"" desc:"file that holds the token, read again when it changes"`
	UpstreamTimeout   time.Duration `split_words:"true" default:"15s" desc:"time limit of one call"`
	UpstreamSettle    time.Duration `split_words:"true" default:"30s" desc:"how long an unanswered call may still take effect at the API"`
	UpstreamVvtype    int           `split_words:"true" default:"" desc:"edition of the API that is asked for: 1 normal, 2 enhanced, 3 standard, 4 reduced; unset: not sent"`
	AccountsFile      string        `split_words:"true" default:"" desc:"YAML file of several accounts"`
	UnknownShop       string        `split_words:"true" default:"default" desc:"what happens with a shop of no account: default (the account of that name), fail, or skip (another deployment's shop)"`
	RatePerSecond     float64       `split_words:"true" default:"10" desc:"calls per second of an account; fractions allowed"`
	RateJitter        time.Duration `split_words:"true" default:"15ms" desc:"variation of the delay to the API that the pacing absorbs"`
	MaxInFlight       int           `split_words:"true" default:"64" desc:"calls at once, per account"`
	BreakerFailures   int           `split_words:"true" default:"5" desc:"consecutive faults of the API that open the breaker"`
	BreakerOpenFor    time.Duration `split_words:"true" default:"30s" desc:"pause of an open breaker before one order probes"`
	RetryMax          int           `split_words:"true" default:"3" desc:"retries of a transient answer"`
	RetryBackoff      time.Duration `split_words:"true" default:"1s" desc:"wait before the first retry; it doubles each time, with jitter"`
	RetryBackoffMax   time.Duration `split_words:"true" default:"30s" desc:"longest wait before a retry"`
	UnknownPolicy     string        `split_words:"true" default:"reconcile" desc:"after a call whose outcome is unknown: reconcile (wait, call again) or park (fail with maybe_shipped)"`
	WaybillCheck      string        `split_words:"true" default:"warn" desc:"carrier patterns of waybill numbers: off, warn or strict"`
	CarriersFile      string        `split_words:"true" default:"" desc:"file that replaces the built-in carrier catalogue"`

	LedgerPartitions int           `split_words:"true" default:"8" desc:"partitions of the ledger topic; fixed at its creation"`
	LedgerHorizon    time.Duration `split_words:"true" default:"168h" desc:"how long the ledger remembers; fixed at its creation"`

	HTTPAddr        string        `split_words:"true" default:":8080" desc:"address of the probes, metrics and the status page"`
	AdminToken      Secret        `split_words:"true" default:"" desc:"bearer token of the operator's actions over HTTP; unset: actions off"`
	AdminTokenFile  string        `split_words:"true" default:"" desc:"file that holds the admin token"`
	LogLevel        string        `split_words:"true" default:"info" desc:"debug, info, warn or error"`
	LogFormat       string        `split_words:"true" default:"json" desc:"json or text; unset: text on a terminal"`
	ShutdownTimeout time.Duration `split_words:"true" default:"30s" desc:"time limit of an orderly stop"`

	// given holds the names, without prefix, that are set in the environment.
	given map[string]bool
	// signals is what the variables of OpenTelemetry ask for.
	signals signals
}

// Given reports whether the setting of that name, without the prefix, is set in
// the environment rather than left at its default.
func (s *Settings) Given(name string) bool { return s.given[name] }

// StartBy is how long after its intent was appended a call may begin. It is
// below the session timeout, so that a replica that has lost its session
// without noticing begins no call.
func (s *Settings) StartBy() time.Duration { return min(5*time.Second, s.KafkaSessionTimeout/2) }

// Topics lists the names of all five topics.
func (s *Settings) Topics() []string {
	return []string{s.TopicPacked, s.TopicShipped, s.TopicFailed, s.TopicDLQ, s.TopicLedger}
}

// Level is the log level.
func (s *Settings) Level() slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(s.LogLevel)); err != nil {
		return slog.LevelInfo
	}
	return l
}

// Switch is a setting that is on or off.
type Switch bool

// Decode reads on, off and their usual synonyms.
func (s *Switch) Decode(value string) error {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "on", "true", "yes", "1":
		*s = true
	case "off", "false", "no", "0":
		*s = false
	default:
		return fmt.Errorf("must be on or off")
	}
	return nil
}

// String returns on or off.
func (s Switch) String() string {
	if s {
		return "on"
	}
	return "off"
}

// List is a setting of several values, separated by commas.
type List []string

// Decode reads the values and leaves out empty ones.
func (l *List) Decode(value string) error {
	*l = nil
	for part := range strings.SplitSeq(value, ",") {
		if part = strings.TrimSpace(part); part != "" {
			*l = append(*l, part)
		}
	}
	return nil
}

// String returns the values as they are set.
func (l List) String() string { return strings.Join(l, ",") }
