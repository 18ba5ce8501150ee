package ledger

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
)

// TopicConfig returns the settings with which the ledger's topic is to be
// created.
func TopicConfig(horizon time.Duration) map[string]string {
	// Retention removes whole segments, so that they must be shorter than the
	// horizon for it to be kept.
	segment := max(horizon/8, time.Hour)
	return map[string]string{
		"cleanup.policy":         "delete",
		"retention.ms":           strconv.FormatInt(horizon.Milliseconds(), 10),
		"retention.bytes":        "-1",
		"segment.ms":             strconv.FormatInt(segment.Milliseconds(), 10),
		"message.timestamp.type": "LogAppendTime",
	}
}

// CheckTopic reports, in one sentence each, why a topic cannot be the ledger and
// what to do about it.
func CheckTopic(ctx context.Context, client *kafka.Client, topic string, partitions int, horizon time.Duration) error {
	t, err := lookUp(ctx, client, topic)
	if err != nil {
		return err
	}
	var errs []error
	if n := len(t.Partitions); n != partitions {
		errs = append(errs, fmt.Errorf("ledger: topic %s has %d partitions instead of %d, which is fixed for ever: set PACKSHIP_LEDGER_PARTITIONS to the number it was made with, or name a new topic in PACKSHIP_TOPIC_LEDGER", topic, n, partitions))
	}
	settings, err := topicSettings(ctx, client, topic)
	if err == nil {
		err = checkSettings(topic, settings, horizon)
	}
	return errors.Join(append(errs, err)...)
}

// checkSettings reports every setting of a topic with which it forgets what the
// horizon asks for.
func checkSettings(topic string, settings map[string]string, horizon time.Duration) error {
	var errs []error
	wrong := func(name, remedy string) {
		errs = append(errs, fmt.Errorf("ledger: topic %s has %s=%s, with which it forgets what must be known: set it to %s", topic, name, settings[name], remedy))
	}
	if policy := settings["cleanup.policy"]; policy != "delete" {
		wrong("cleanup.policy", "delete")
	}
	// Below zero means no limit.
	if ms, err := strconv.ParseInt(settings["retention.ms"], 10, 64); err != nil || ms >= 0 && ms < horizon.Milliseconds() {
		wrong("retention.ms", fmt.Sprintf("%d, the horizon of %s", horizon.Milliseconds(), horizon))
	}
	if bytes, ok := settings["retention.bytes"]; ok && bytes != "-1" {
		wrong("retention.bytes", "-1")
	}
	return errors.Join(errs...)
}

// watchTopic looks from time to time whether the topic is still set so that it
// keeps what it must, until ctx ends. Somebody may change it while it is in use,
// and what is deleted then is found only when it is gone.
func (l *Ledger) watchTopic(ctx context.Context) {
	last := ""
	for sleep(ctx, topicInterval); ctx.Err() == nil; sleep(ctx, topicInterval) {
		settings, err := topicSettings(ctx, l.cfg.Client, l.cfg.Topic)
		if err != nil {
			continue // the tail tells of brokers that do not answer
		}
		unfit := ""
		if err := checkSettings(l.cfg.Topic, settings, l.cfg.Horizon); err != nil {
			unfit = err.Error()
		}
		switch {
		case unfit == last:
		case unfit != "":
			l.log.Error("the ledger's topic was changed", "err", unfit)
		default:
			l.log.Info("the ledger's topic is as it should be again")
		}
		last = unfit
		l.unfit.Store(&unfit)
	}
}

// topicInterval is how often the topic's settings are looked at.
const topicInterval = time.Minute

// lookUp returns what the cluster says of a topic.
func lookUp(ctx context.Context, client *kafka.Client, topic string) (kafka.Topic, error) {
	var seen kafka.Topic
	err := whileUnknown(ctx, func() error {
		meta, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
		if err != nil {
			return err
		}
		seen = meta.Topics[0]
		return seen.Error
	})
	switch {
	case errors.Is(err, kafka.UnknownTopicOrPartition):
		return kafka.Topic{}, fmt.Errorf("ledger: topic %s does not exist: create it with `packship topics create`", topic)
	case err != nil:
		return kafka.Topic{}, fmt.Errorf("ledger: look up topic %s: %w", topic, err)
	}
	return seen, nil
}

// whileUnknown asks about a topic, and for a while again as long as it is unknown: a
// topic that was created a moment ago may not be known to all brokers yet, nor to
// the client.
func whileUnknown(ctx context.Context, ask func() error) error {
	const limit, pause = 2 * time.Second, 100 * time.Millisecond
	begin := time.Now()
	for {
		err := ask()
		if !errors.Is(err, kafka.UnknownTopicOrPartition) || time.Since(begin) > limit || ctx.Err() != nil {
			return err
		}
		sleep(ctx, pause)
	}
}

// topicSettings returns the settings of a topic.
func topicSettings(ctx context.Context, client *kafka.Client, topic string) (map[string]string, error) {
	var res *kafka.DescribeConfigsResponse
	err := whileUnknown(ctx, func() (err error) {
		res, err = client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{
			Resources: []kafka.DescribeConfigRequestResource{{
				ResourceType: kafka.ResourceTypeTopic,
				ResourceName: topic,
				ConfigNames:  []string{"cleanup.policy", "retention.ms", "retention.bytes"},
			}},
		})
		if err == nil && len(res.Resources) == 1 {
			err = res.Resources[0].Error
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ledger: read the settings of topic %s: %w", topic, err)
	}
	settings := make(map[string]string)
	for _, resource := range res.Resources {
		for _, entry := range resource.ConfigEntries {
			settings[entry.ConfigName] = entry.ConfigValue
		}
	}
	return settings, nil
}
