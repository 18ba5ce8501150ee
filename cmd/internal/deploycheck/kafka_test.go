package deploycheck

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/cmd/internal/app"
	"packship/producer/ledger"
	"packship/schema"
	"packship/upstream/upstreamtest"
)

var row = regexp.MustCompile("(?m)^\\| (topic|group) \\| `([^`]+)` \\| (\\w+) \\|")

// rights reads a table of docs/kafka.md.
func rights(t *testing.T, of string) []kfake.ACL {
	t.Helper()
	_, table, ok := strings.Cut(read(t, "docs/kafka.md"), "<!-- rights "+of+" -->")
	table, _, ok2 := strings.Cut(table, "<!-- end -->")
	if !ok || !ok2 {
		t.Fatalf("docs/kafka.md has no table of rights %s", of)
	}
	var acls []kfake.ACL
	for _, m := range row.FindAllStringSubmatch(table, -1) {
		op, err := kmsg.ParseACLOperation(m[3])
		if err != nil {
			t.Fatal(err)
		}
		resource, err := kmsg.ParseACLResourceType(m[1])
		if err != nil {
			t.Fatal(err)
		}
		acls = append(acls, kfake.ACL{Resource: resource, Name: m[2], Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: op, Allow: true})
	}
	if len(acls) == 0 {
		t.Fatalf("the table of rights %s is empty", of)
	}
	return acls
}

// guarded returns settings for users of a broker that checks rights, by name.
func guarded(t *testing.T, users map[string][]kfake.ACL) func(user string) app.Settings {
	t.Helper()
	const mechanism, password = "SCRAM-SHA-256", "secret"
	opts := []kfake.Opt{kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser(mechanism, "admin", password)}
	for user, acls := range users {
		opts = append(opts, kfake.User(mechanism, user, password, acls...))
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return func(user string) app.Settings {
		s := app.Defaults()
		s.KafkaBrokers, s.UpstreamToken, s.HTTPAddr = cluster.ListenAddrs(), "token", "127.0.0.1:0"
		s.KafkaSASLMechanism, s.KafkaSASLUsername, s.KafkaSASLPassword = mechanism, user, password
		return s
	}
}

func connect(t *testing.T, s *app.Settings) *app.Kafka {
	t.Helper()
	k := app.NewKafka(s, nil, s.Topics()...)
	t.Cleanup(k.Close)
	if err := k.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	return k
}

// TestRightsSuffice runs packship with the rights that the page names, on a
// broker that grants no others: an order is shipped, one fails, and what is no
// order becomes a dead letter.
func TestRightsSuffice(t *testing.T) {
	as := guarded(t, map[string][]kfake.ACL{"packship": rights(t, "of the connector"), "creator": rights(t, "to create")})
	creator, admin, s := as("creator"), as("admin"), as("packship")
	if created, err := connect(t, &creator).CreateTopics(t.Context(), 1, 1); err != nil || len(created) != 5 {
		t.Fatalf("created %v: %v", created, err)
	}
	k := connect(t, &admin)
	for _, value := range []string{
		`{"shop_id":"1","tid":"1","out_sid":"SF0000000000001","company_code":"SF"}`, `{"shop_id":"1","tid":"2"}`, `no order`,
	} {
		res, err := k.Client.Produce(t.Context(), &kafka.ProduceRequest{
			Topic: s.TopicPacked, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(kafka.Record{Value: kafka.NewBytes([]byte(value)), Time: time.Now()}),
		})
		if err := errors.Join(err, res.Error); err != nil {
			t.Fatal(err)
		}
	}
	api := upstreamtest.New(upstreamtest.Options{AutoCreate: true})
	t.Cleanup(func() { _ = api.Close() })
	url, err := api.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.UpstreamURL = url + upstreamtest.SendPath
	c, err := app.New(s, app.Options{})
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(run) }()
	// done is true once each of the three topics holds its record, and the
	// offsets are committed.
	done := func() bool {
		for _, topic := range []string{s.TopicShipped, s.TopicFailed, s.TopicDLQ} {
			n := 0
			if err := k.Scan(t.Context(), topic, func(*schema.Record) error { n++; return nil }); err != nil || n != 1 {
				return false
			}
		}
		progress, err := k.Progress(t.Context())
		return err == nil && progress[0].Committed == 3
	}
	for end := time.Now().Add(patience); !done(); time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-ended:
			t.Fatalf("packship ended: %v", err)
		default:
		}
		if time.Now().After(end) {
			stop()
			t.Fatalf("not done after %s; status %+v, ended with %v", patience, c.Status(), <-ended)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestMissingRightIsNamed takes each right of the page away in turn, and looks
// for it where a person would: in the error with which packship ends, or in the
// reason why it is not ready.
func TestMissingRightIsNamed(t *testing.T) {
	all := rights(t, "of the connector")
	users := map[string][]kfake.ACL{"creator": rights(t, "to create"), "stranger": nil}
	lacking := func(i int) string { return fmt.Sprintf("lacks-%d", i) }
	for i := range all {
		users[lacking(i)] = slices.Delete(slices.Clone(all), i, i+1)
	}
	as := guarded(t, users)
	creator, stranger := as("creator"), as("stranger")
	if _, err := connect(t, &creator).CreateTopics(t.Context(), 1, 1); err != nil {
		t.Fatal(err)
	}
	// From the end: only the first that gets as far as the ledger finds it empty,
	// and has to write to it at once.
	for i, acl := range slices.Backward(all) {
		t.Run(fmt.Sprintf("%s on %s", acl.Operation, acl.Name), func(t *testing.T) {
			s := as(lacking(i))
			c, err := app.New(s, app.Options{})
			if err != nil {
				t.Fatal(err)
			}
			run, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- c.Run(run) }()
			operation := map[kmsg.ACLOperation]string{kmsg.ACLOperationRead: "Read", kmsg.ACLOperationWrite: "Write", kmsg.ACLOperationDescribeConfigs: "DescribeConfigs"}[acl.Operation]
			kind := map[kmsg.ACLResourceType]string{kmsg.ACLResourceTypeTopic: "topic", kmsg.ACLResourceTypeGroup: "group"}[acl.Resource]
			want := fmt.Sprintf("grant User:%s the right %s on %s %s", lacking(i), operation, kind, acl.Name)
			said := ""
			for end := time.Now().Add(patience); !strings.Contains(said, want); time.Sleep(20 * time.Millisecond) {
				select {
				case err := <-ended:
					ended <- nil
					if said = err.Error(); !strings.Contains(said, want) {
						t.Fatalf("ended with %q, want %q in it", said, want)
					}
				default:
					_, said = c.Ready()
				}
				if time.Now().After(end) {
					t.Fatalf("not ready because %q, want %q in it", said, want)
				}
			}
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}

	k := connect(t, &stranger)
	topics, err := k.Topics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range topics {
		if !topic.Hidden || topic.Exists || !strings.Contains(topic.Problem, "grant User:stranger the right ") {
			t.Errorf("to a user without rights, a topic is %+v", topic)
		}
	}
	if err := k.CheckTopics(t.Context(), app.RightsToOperate); err == nil || !strings.Contains(err.Error(), "the right Read and Write on topic "+stranger.TopicPacked) {
		t.Errorf("commands say %v", err)
	}
	stranger.TopicDLQ = "another"
	if _, err := k.CreateTopics(t.Context(), 1, 1); err == nil || !strings.Contains(err.Error(), "grant User:stranger the right Create on topic another") {
		t.Errorf("creating topics says %v", err)
	}
}

// TestLedgerTopicPage holds the page to the configuration that the ledger wants.
func TestLedgerTopicPage(t *testing.T) {
	page := read(t, "docs/kafka.md")
	s := app.Defaults()
	want := ledger.TopicConfig(s.LedgerHorizon)
	want["partitions"] = strconv.Itoa(s.LedgerPartitions)
	_, command, _ := strings.Cut(page, "--create --topic "+s.TopicLedger)
	command, _, _ = strings.Cut(command, "```")
	for name, value := range want {
		if !strings.Contains(page, "| `"+name+"` | `"+value+"` |") && !strings.Contains(page, "| "+name+" | `"+value+"` |") {
			t.Errorf("docs/kafka.md does not say that %s has to be %s", name, value)
		}
		if name == "partitions" {
			value = "--partitions " + value
		} else {
			value = "--config " + name + "=" + value
		}
		if !strings.Contains(command, value) {
			t.Errorf("the command in docs/kafka.md lacks %s", value)
		}
	}
}
