package app

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go"

	"packship/upstream/upstreamtest"
)

// The suites of this package also run on real brokers that encrypt, ask for a
// login and check rights:
//
//	PACKSHIP_TEST_BROKERS              a listener whose users may do everything
//	PACKSHIP_TEST_SECURE_BROKERS       a listener of SASL_SSL
//	PACKSHIP_TEST_SECURE_CERT_BROKERS  a listener of SSL that asks for a certificate
//	PACKSHIP_TEST_SECURE_CA            the authority of both listeners
//	PACKSHIP_TEST_SECURE_PLAIN         user:password of a user for PLAIN
//
// Every world then has a user of its own with exactly the rights of the table in
// docs/kafka.md, and its connectors log in as that user. What the test itself
// does, such as reading the results, goes through the first listener.
func rightsChecked() bool { return os.Getenv("PACKSHIP_TEST_SECURE_BROKERS") != "" }

// needSecured skips a test that needs such brokers.
func needSecured(t *testing.T) {
	t.Helper()
	if !rightsChecked() {
		t.Skip("PACKSHIP_TEST_SECURE_BROKERS names no brokers that check rights")
	}
}

const (
	scram256 = "SCRAM-SHA-256"
	scram512 = "SCRAM-SHA-512"
)

// right is a row of the table of rights.
type right struct {
	kind, name, operation string
}

func (r right) String() string { return fmt.Sprintf("%s on %s %s", r.operation, r.kind, r.name) }

// documentedRights reads what a connector needs from the manual, with the names
// of this world.
func (w *world) documentedRights() []right {
	w.t.Helper()
	page, err := os.ReadFile("../../../docs/kafka.md")
	if err != nil {
		w.t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "<!-- rights of the connector -->")
	table, _, _ = strings.Cut(table, "<!-- end -->")
	d, s := Defaults(), &w.settings
	names := map[string]string{
		d.TopicPacked: s.TopicPacked, d.TopicShipped: s.TopicShipped, d.TopicFailed: s.TopicFailed,
		d.TopicDLQ: s.TopicDLQ, d.TopicLedger: s.TopicLedger, d.KafkaGroupID: s.KafkaGroupID,
	}
	var rights []right
	for _, m := range regexp.MustCompile("(?m)^\\| (topic|group) \\| `([^`]+)` \\| (\\w+) \\|").FindAllStringSubmatch(table, -1) {
		rights = append(rights, right{m[1], names[m[2]], m[3]})
	}
	if len(rights) < 8 {
		w.t.Fatalf("docs/kafka.md names only %d rights", len(rights))
	}
	return rights
}

// grant gives a user rights.
func (w *world) grant(principal string, rights ...right) {
	w.t.Helper()
	var entries []kafka.ACLEntry
	for _, r := range rights {
		e := kafka.ACLEntry{Principal: principal, Host: "*", ResourceName: r.name, ResourcePatternType: kafka.PatternTypeLiteral, PermissionType: kafka.ACLPermissionTypeAllow}
		if err := errors.Join(e.ResourceType.UnmarshalText([]byte(r.kind)), e.Operation.UnmarshalText([]byte(r.operation))); err != nil {
			w.t.Fatal(err)
		}
		entries = append(entries, e)
	}
	res, err := w.kafka.Client.CreateACLs(w.t.Context(), &kafka.CreateACLsRequest{ACLs: entries})
	if err == nil {
		err = errors.Join(res.Errors...)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	eventually(w.t, "the broker knows the new rights", func() bool { return w.holds(principal, rights...) == len(rights) })
}

// holds returns how many of the rights the broker says that a user has.
func (w *world) holds(principal string, rights ...right) int {
	w.t.Helper()
	res, err := w.kafka.Client.DescribeACLs(context.WithoutCancel(w.t.Context()), &kafka.DescribeACLsRequest{Filter: kafka.ACLFilter{
		ResourceTypeFilter: kafka.ResourceTypeAny, ResourcePatternTypeFilter: kafka.PatternTypeLiteral, PrincipalFilter: principal,
		Operation: kafka.ACLOperationTypeAny, PermissionType: kafka.ACLPermissionTypeAllow,
	}})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		w.t.Fatal(err)
	}
	found := 0
	for _, r := range res.Resources {
		for _, a := range r.ACLs {
			if slices.Contains(rights, right{strings.ToLower(r.ResourceType.String()), r.ResourceName, a.Operation.String()}) {
				found++
			}
		}
	}
	return found
}

// revoke takes rights from a user.
func (w *world) revoke(principal string, rights ...right) {
	w.t.Helper()
	var filters []kafka.DeleteACLsFilter
	for _, r := range rights {
		f := kafka.DeleteACLsFilter{PrincipalFilter: principal, HostFilter: "*", ResourceNameFilter: r.name, ResourcePatternTypeFilter: kafka.PatternTypeLiteral, PermissionType: kafka.ACLPermissionTypeAllow}
		if err := errors.Join(f.ResourceTypeFilter.UnmarshalText([]byte(r.kind)), f.Operation.UnmarshalText([]byte(r.operation))); err != nil {
			w.t.Fatal(err)
		}
		filters = append(filters, f)
	}
	res, err := w.kafka.Client.DeleteACLs(context.WithoutCancel(w.t.Context()), &kafka.DeleteACLsRequest{Filters: filters})
	if err != nil {
		w.t.Fatal(err)
	}
	for i, r := range res.Results {
		if r.Error != nil || len(r.MatchingACLs) != 1 {
			w.t.Fatalf("%s: %v, %d entries taken away", rights[i], r.Error, len(r.MatchingACLs))
		}
	}
	eventually(w.t, "the broker has forgotten the rights", func() bool { return w.holds(principal, rights...) == 0 })
}

// setPassword gives a user, who may be new, a password, and returns once the
// broker lets it in.
func (w *world) setPassword(user, password string) {
	w.t.Helper()
	w.changePassword(user, password)
	s := Defaults()
	s.encryptTo(os.Getenv("PACKSHIP_TEST_SECURE_BROKERS"), os.Getenv("PACKSHIP_TEST_SECURE_CA"))
	s.KafkaSASLMechanism, s.KafkaSASLUsername, s.KafkaSASLPassword = scram512, user, Secret(password)
	k := NewKafka(&s, nil)
	defer k.Close()
	eventually(w.t, "the new password is known to the broker", func() bool { return k.Probe(w.t.Context()) == nil })
}

// changePassword gives a user a password for both kinds of SCRAM.
func (w *world) changePassword(user, password string) {
	w.t.Helper()
	const iterations = 4096
	salt := []byte(rand.Text())
	short, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		w.t.Fatal(err)
	}
	long, err := pbkdf2.Key(sha512.New, password, salt, iterations, sha512.Size)
	if err != nil {
		w.t.Fatal(err)
	}
	// A request may speak of a user once.
	for _, u := range []kafka.UserScramCredentialsUpsertion{
		{Mechanism: kafka.ScramMechanismSha256, SaltedPassword: short},
		{Mechanism: kafka.ScramMechanismSha512, SaltedPassword: long},
	} {
		u.Name, u.Iterations, u.Salt = user, iterations, salt
		res, err := w.kafka.Client.AlterUserScramCredentials(w.t.Context(), &kafka.AlterUserScramCredentialsRequest{Upsertions: []kafka.UserScramCredentialsUpsertion{u}})
		if err == nil {
			err = res.Results[0].Error
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// encryptTo makes connections go to a listener of TLS.
func (s *Settings) encryptTo(brokers, ca string) {
	s.KafkaBrokers = strings.Split(brokers, ",")
	s.KafkaTLS, s.KafkaTLSCaFile = true, ca
}

// secure makes the world's connectors log in as a new user who has the
// documented rights. The test's own connection stays as it is.
func (w *world) secure(t *testing.T) {
	t.Helper()
	own := w.settings
	w.kafka = NewKafka(&own, nil, own.Topics()...)
	t.Cleanup(w.kafka.Close)
	s := &w.settings
	user := "user-" + s.KafkaGroupID
	s.encryptTo(os.Getenv("PACKSHIP_TEST_SECURE_BROKERS"), os.Getenv("PACKSHIP_TEST_SECURE_CA"))
	s.KafkaSASLMechanism, s.KafkaSASLUsername = scram512, user
	s.KafkaSASLPasswordFile = filepath.Join(t.TempDir(), "password")
	overwrite(t, s.KafkaSASLPasswordFile, []byte("first password\n"))
	w.setPassword(user, "first password")
	w.grant("User:"+user, w.documentedRights()...)
}

// TestSecureLogins ships an order, fails one and buries a record over each way
// to log in, as a user who has the documented rights and no others.
func TestSecureLogins(t *testing.T) {
	needSecured(t)
	plain, plainPassword, _ := strings.Cut(os.Getenv("PACKSHIP_TEST_SECURE_PLAIN"), ":")
	for name, login := range map[string]func(w *world) (principal string){
		scram256: func(w *world) string {
			w.settings.KafkaSASLMechanism = scram256
			return ""
		},
		scram512: func(*world) string { return "" },
		"PLAIN": func(w *world) string {
			s := &w.settings
			s.KafkaSASLMechanism, s.KafkaSASLUsername = "PLAIN", plain
			overwrite(w.t, s.KafkaSASLPasswordFile, []byte(plainPassword))
			return "User:" + plain
		},
		"client certificate": func(w *world) string {
			ca, s := newAuthority(w.t), &w.settings
			w.trustClientsOf(ca)
			s.encryptTo(os.Getenv("PACKSHIP_TEST_SECURE_CERT_BROKERS"), os.Getenv("PACKSHIP_TEST_SECURE_CA"))
			s.KafkaSASLMechanism, s.KafkaSASLUsername, s.KafkaSASLPasswordFile = "", "", ""
			dir := w.t.TempDir()
			s.KafkaTLSCertFile, s.KafkaTLSKeyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
			cert, key := ca.sign(w.t, 7)
			overwrite(w.t, s.KafkaTLSCertFile, cert)
			overwrite(w.t, s.KafkaTLSKeyFile, key)
			return "User:CN=packship test"
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, upstreamtest.Options{Latency: quick})
			if principal := login(w); principal != "" {
				rights := w.documentedRights()
				w.grant(principal, rights...)
				t.Cleanup(func() { w.revoke(principal, rights...) })
			}
			w.produce(order(1, ""), strings.Replace(order(2, ""), `"SF0000000000002"`, `""`, 1), "no order")
			r := w.start()
			w.await(1, 1, 1)
			w.committed()
			w.verify()
			if err := r.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// trustClientsOf makes the listener that asks for certificates take those of an
// authority.
func (w *world) trustClientsOf(ca *authority) {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "clients.pem")
	overwrite(w.t, file, ca.pem)
	w.configureBroker(map[string]string{"listener.name.ssl.ssl.truststore.location": file})
}

// configureBroker changes the configuration of the only broker while it runs,
// until the end of the test.
func (w *world) configureBroker(config map[string]string) {
	w.t.Helper()
	alter := func(ctx context.Context, op kafka.ConfigOperation) error {
		var changes []kafka.IncrementalAlterConfigsRequestConfig
		for name, value := range config {
			changes = append(changes, kafka.IncrementalAlterConfigsRequestConfig{Name: name, Value: value, ConfigOperation: op})
		}
		res, err := w.kafka.Client.IncrementalAlterConfigs(ctx, &kafka.IncrementalAlterConfigsRequest{
			Resources: []kafka.IncrementalAlterConfigsRequestResource{{ResourceType: kafka.ResourceTypeBroker, ResourceName: "1", Configs: changes}},
		})
		if err == nil && len(res.Resources) > 0 {
			err = res.Resources[0].Error
		}
		return err
	}
	if err := alter(w.t.Context(), kafka.ConfigOperationSet); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := alter(context.WithoutCancel(w.t.Context()), kafka.ConfigOperationDelete); err != nil {
			w.t.Error(err)
		}
	})
}

// attempt is a connector that may end by itself.
type attempt struct {
	c     *Connector
	log   *recorder
	ended chan error
}

// attempt runs the connector until the end of the test, or until it gives up.
func (w *world) attempt() *attempt {
	w.t.Helper()
	a := &attempt{log: &recorder{}, ended: make(chan error, 1)}
	var err error
	if a.c, err = New(w.settings, Options{Logger: slog.New(slog.NewTextHandler(a.log, nil))}); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	over := make(chan struct{})
	go func() {
		defer close(over)
		a.ended <- a.c.Run(ctx)
	}()
	w.t.Cleanup(func() {
		cancel()
		<-over
		if w.t.Failed() {
			w.t.Logf("log:\n%s", a.log)
		}
	})
	return a
}

// TestSecureMissingRight takes each documented right away, one at a time, and
// looks for a message that names it: at the start or, where the start does not
// need it, at work. Once it is granted, all is done and nothing is done twice.
func TestSecureMissingRight(t *testing.T) {
	needSecured(t)
	w := newWorld(t, upstreamtest.Options{})
	for i, missing := range w.documentedRights() {
		name := strings.TrimPrefix(missing.name, regexp.MustCompile(`^e2e-\d+-`).FindString(missing.name))
		t.Run(missing.operation+" on "+missing.kind+" "+name, func(t *testing.T) {
			t.Parallel() // a refused record is tried again after ten seconds
			w := newWorld(t, upstreamtest.Options{Latency: quick})
			missing := w.documentedRights()[i]
			principal := "User:" + w.settings.KafkaSASLUsername
			w.revoke(principal, missing)
			// Whoever may describe a topic is told later what else is missing.
			if missing.kind == "topic" {
				w.grant(principal, right{missing.kind, missing.name, "Describe"})
			}
			w.produce(order(1, ""), strings.Replace(order(2, ""), `"SF0000000000002"`, `""`, 1), "no order")
			a := w.attempt()
			named := func(text string) bool {
				return strings.Contains(text, missing.operation+" on "+missing.kind+" "+missing.name) && strings.Contains(text, principal)
			}
			var gaveUp error
			eventually(t, fmt.Sprintf("a message that names %s", missing), func() bool {
				select {
				case gaveUp = <-a.ended:
					if !named(gaveUp.Error()) {
						t.Fatalf("ended with %v, want it to name %s of %s", gaveUp, missing, principal)
					}
					return true
				default:
					return named(a.log.String())
				}
			})
			// What keeps it from being ready is said there, too.
			if gaveUp == nil && (missing.kind == "group" || missing.name == w.settings.TopicLedger) {
				eventually(t, fmt.Sprintf("not ready for want of %s", missing), func() bool { _, why := a.c.Ready(); return named(why) })
			}
			w.grant(principal, missing)
			if gaveUp != nil {
				w.attempt()
			}
			w.await(1, 1, 1)
			w.committed()
			if stats := w.verify(); stats.Calls != 1 {
				t.Errorf("%d calls, want 1", stats.Calls)
			}
		})
	}
}
