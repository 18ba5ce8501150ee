package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"packship/producer/ledger"
)

// Topic is one of packship's topics as the cluster has it.
type Topic struct {
	Name        string `json:"topic"`
	Setting     string `json:"setting"` // the variable that names it
	Exists      bool   `json:"exists"`
	Hidden      bool   `json:"hidden,omitempty"` // this client has no right on it, so that it may be there or not
	Partitions  int    `json:"partitions"`
	Replication int    `json:"replication"`
	Cleanup     string `json:"cleanup_policy"`
	Retention   string `json:"retention"`
	// Problem says what is wrong and what to do, "" if nothing is.
	Problem string `json:"problem,omitempty"`

	largest int // record that it takes, in bytes; 0 if the cluster does not say
}

// TopicsError is about topics that must be put right before anything can run.
type TopicsError struct{ Problems []string }

func (e *TopicsError) Error() string { return strings.Join(e.Problems, "; ") }

// ledgerSetting is the setting that names the ledger topic.
const ledgerSetting = "TOPIC_LEDGER"

// Topics describes packship's topics and what is wrong with them. The error is
// about Kafka, not about the topics.
func (k *Kafka) Topics(ctx context.Context) ([]Topic, error) { return k.topics(ctx, RightsToRun) }

func (k *Kafka) topics(ctx context.Context, rights Rights) ([]Topic, error) {
	s := k.settings
	meta, err := k.Client.Metadata(ctx, &kafka.MetadataRequest{Topics: s.Topics()})
	if err != nil {
		return nil, fmt.Errorf("topics: metadata: %w", err)
	}
	known := map[string]kafka.Topic{}
	for _, t := range meta.Topics {
		known[t.Name] = t
	}
	var topics []Topic
	for _, named := range s.topicSettings() {
		t := Topic{Name: named.topic, Setting: variable(named.name)}
		seen, ok := known[named.topic]
		switch {
		case !ok || errors.Is(seen.Error, kafka.UnknownTopicOrPartition):
			t.Problem = fmt.Sprintf("topic %s does not exist; create it with `packship topics create`, or set %s", t.Name, t.Setting)
			topics = append(topics, t)
			continue
		case errors.Is(seen.Error, kafka.TopicAuthorizationFailed):
			t.Hidden = true
			t.Problem = fmt.Sprintf("topic %s may not be seen, if it is there; %s, or set %s", t.Name, s.grant(rights(named.name), t.Name), t.Setting)
			topics = append(topics, t)
			continue
		case seen.Error != nil:
			return nil, fmt.Errorf("topics: %s: %w", t.Name, seen.Error)
		}
		t.Exists, t.Partitions = true, len(seen.Partitions)
		if t.Partitions > 0 {
			t.Replication = len(seen.Partitions[0].Replicas)
		}
		topics = append(topics, t)
	}
	if err := k.describe(ctx, topics); err != nil {
		return nil, err
	}
	for i := range topics {
		if t := &topics[i]; t.Exists && t.Setting == variable(ledgerSetting) {
			if t.Problem, err = k.ledgerProblem(ctx); err != nil {
				return nil, err
			}
		}
	}
	return topics, nil
}

// Rights tells what somebody needs on the topic that a setting names. Any of it
// lets the topic be seen.
type Rights func(setting string) string

// RightsToRun is what a connector needs.
func RightsToRun(setting string) string {
	switch setting {
	case "TOPIC_PACKED":
		return "Read"
	case ledgerSetting:
		return "Read, Write and DescribeConfigs"
	default:
		return "Write"
	}
}

// RightsToOperate is what the commands need that look into the topics, and send
// orders again.
func RightsToOperate(setting string) string {
	switch setting {
	case "TOPIC_PACKED":
		return "Read and Write"
	case ledgerSetting:
		return "Read and DescribeConfigs"
	default:
		return "Read"
	}
}

// grant asks for rights on a topic.
func (s *Settings) grant(rights, topic string) string {
	return fmt.Sprintf("grant %s the right %s on topic %s", cmp.Or(s.Principal(), "this client"), rights, topic)
}

// describe fills in what the topics' configurations say.
func (k *Kafka) describe(ctx context.Context, topics []Topic) error {
	var resources []kafka.DescribeConfigRequestResource
	for _, t := range topics {
		if t.Exists {
			resources = append(resources, kafka.DescribeConfigRequestResource{
				ResourceType: kafka.ResourceTypeTopic, ResourceName: t.Name,
				ConfigNames: []string{"cleanup.policy", "retention.ms", "max.message.bytes"},
			})
		}
	}
	if len(resources) == 0 {
		return nil
	}
	res, err := k.Client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: resources})
	if err != nil {
		return fmt.Errorf("topics: configuration: %w", err)
	}
	for _, r := range res.Resources {
		i := slices.IndexFunc(topics, func(t Topic) bool { return t.Name == r.ResourceName })
		if i < 0 || r.Error != nil { // not every user may read configurations
			continue
		}
		for _, e := range r.ConfigEntries {
			switch e.ConfigName {
			case "cleanup.policy":
				topics[i].Cleanup = e.ConfigValue
			case "retention.ms":
				topics[i].Retention = retention(e.ConfigValue)
			case "max.message.bytes":
				topics[i].largest, _ = strconv.Atoi(e.ConfigValue)
			}
		}
	}
	return nil
}

// RetentionOf tells for how long one of packship's topics keeps records, 0 if for
// ever or if that is not known.
func (k *Kafka) RetentionOf(ctx context.Context, topic string) (time.Duration, error) {
	described := []Topic{{Name: topic, Exists: true}}
	if err := k.describe(ctx, described); err != nil {
		return 0, err
	}
	kept, err := time.ParseDuration(described[0].Retention)
	if err != nil {
		return 0, nil //nolint:nilerr // unlimited, or not told
	}
	return kept, nil
}

// ledgerProblem says what is wrong with the ledger topic, "" if nothing is.
func (k *Kafka) ledgerProblem(ctx context.Context) (string, error) {
	s := k.settings
	err := ledger.CheckTopic(ctx, k.Client, s.TopicLedger, s.LedgerPartitions, s.LedgerHorizon)
	switch {
	case err == nil:
		return "", nil
	case errors.Is(err, kafka.TopicAuthorizationFailed):
		return fmt.Sprintf("the configuration of the ledger topic may not be read; %s", s.grant("DescribeConfigs", s.TopicLedger)), nil
	case isTrouble(err):
		return "", err
	default:
		return OneLine(err.Error()), nil
	}
}

// isTrouble reports whether an error is about reaching Kafka and not about what
// it says.
func isTrouble(err error) bool {
	if _, ok := errors.AsType[kafka.Error](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// retention turns a retention.ms into a duration.
func retention(ms string) string {
	if strings.HasPrefix(ms, "-") {
		return "unlimited"
	}
	d, err := time.ParseDuration(ms + "ms")
	if err != nil {
		return ms
	}
	return d.String()
}

// CheckTopics returns a [*TopicsError] if a topic is missing or unusable, and
// another error if Kafka does not say. The rights are those that the caller is
// going to need.
func (k *Kafka) CheckTopics(ctx context.Context, rights Rights) error {
	topics, err := k.topics(ctx, rights)
	if err != nil {
		return err
	}
	var problems []string
	for _, t := range topics {
		if t.Problem != "" {
			problems = append(problems, t.Problem)
		}
	}
	if len(problems) > 0 {
		return &TopicsError{Problems: problems}
	}
	return nil
}

// CreateTopics creates the topics that are missing and returns their names. The
// ledger gets its own partition count and configuration, and the dead letters get
// room for their headers. A replication of 0 is three, or the number of brokers if
// there are fewer.
func (k *Kafka) CreateTopics(ctx context.Context, partitions, replication int) ([]string, error) {
	topics, err := k.Topics(ctx)
	if err != nil {
		return nil, err
	}
	if replication == 0 {
		meta, err := k.Client.Metadata(ctx, &kafka.MetadataRequest{})
		if err != nil {
			return nil, fmt.Errorf("topics: metadata: %w", err)
		}
		replication = min(3, max(1, len(meta.Brokers)))
	}
	var wanted []kafka.TopicConfig
	var created []string
	for _, t := range topics {
		if t.Exists {
			continue
		}
		config := kafka.TopicConfig{Topic: t.Name, NumPartitions: partitions, ReplicationFactor: replication}
		switch t.Setting {
		case variable(ledgerSetting):
			config.NumPartitions = k.settings.LedgerPartitions
			config.ConfigEntries = ledgerConfig(k.settings.LedgerHorizon, replication)
		case variable("TOPIC_DLQ"):
			largest := min(k.largestPacked(ctx, topics), math.MaxInt32-deadLetterRoom)
			config.ConfigEntries = []kafka.ConfigEntry{{ConfigName: "max.message.bytes", ConfigValue: strconv.Itoa(largest + deadLetterRoom)}}
		}
		wanted = append(wanted, config)
		created = append(created, t.Name)
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	res, err := k.Client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: wanted})
	if err != nil {
		return nil, fmt.Errorf("topics: create: %w", err)
	}
	var failed []error
	for _, name := range slices.Clone(created) {
		if err := res.Errors[name]; err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
			if errors.Is(err, kafka.TopicAuthorizationFailed) {
				err = fmt.Errorf("%w; %s", err, k.settings.grant("Create", name))
			}
			failed = append(failed, fmt.Errorf("topics: create %s: %w", name, err))
			created = slices.DeleteFunc(created, func(n string) bool { return n == name })
		}
	}
	return created, errors.Join(failed...)
}

const (
	// deadLetterRoom is how much larger than the packed record a dead letter may
	// be: it has the whole record and headers of its own.
	deadLetterRoom = 64 << 10
	// largestByDefault is Kafka's own default of message.max.bytes.
	largestByDefault = 1_048_588
)

// largestPacked returns the size of the largest record that the packed topic
// takes, or would take if it were created now. Where the cluster does not say, for
// want of a right, it is Kafka's default.
func (k *Kafka) largestPacked(ctx context.Context, topics []Topic) int {
	for _, t := range topics {
		if t.Setting == variable("TOPIC_PACKED") && t.largest > 0 {
			return t.largest
		}
	}
	meta, err := k.Client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{}})
	if err != nil || len(meta.Brokers) == 0 {
		return largestByDefault
	}
	res, err := k.Client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{{
		ResourceType: kafka.ResourceTypeBroker, ResourceName: strconv.Itoa(meta.Brokers[0].ID), ConfigNames: []string{"message.max.bytes"},
	}}})
	if err != nil {
		return largestByDefault
	}
	for _, r := range res.Resources {
		for _, e := range r.ConfigEntries {
			if n, err := strconv.Atoi(e.ConfigValue); err == nil && e.ConfigName == "message.max.bytes" {
				return n
			}
		}
	}
	return largestByDefault
}

// ledgerConfig is the configuration of a new ledger topic. Where there are
// three replicas, an outcome counts once two have it.
func ledgerConfig(horizon time.Duration, replication int) []kafka.ConfigEntry {
	config := ledger.TopicConfig(horizon)
	if replication >= 3 {
		config["min.insync.replicas"] = "2"
	}
	var entries []kafka.ConfigEntry
	for name, value := range config {
		entries = append(entries, kafka.ConfigEntry{ConfigName: name, ConfigValue: value})
	}
	slices.SortFunc(entries, func(a, b kafka.ConfigEntry) int { return strings.Compare(a.ConfigName, b.ConfigName) })
	return entries
}
