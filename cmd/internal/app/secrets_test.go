package app

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"packship/schema"
	"packship/upstream/upstreamtest"
)

// TestSecretsStaySecret runs the real binary with secrets that are easy to find
// through a life of every kind of trouble, and looks for them in all that it
// leaves behind or shows. The link of an answer 302, with which a shop is
// authorised, is a secret too, and shown to the operator in /api/status alone.
func TestSecretsStaySecret(t *testing.T) {
	if os.Getenv("PACKSHIP_TEST_BROKERS") != "" {
		t.Skip("needs a broker with a password of its own")
	}
	secrets := map[string]string{
		"API token":       "secret-of-the-api-4711",
		"other API token": "secret-of-the-other-api-4712",
		"Kafka password":  "secret-of-kafka-4713",
		"admin token":     "secret-of-the-admin-4714",
		"wrong token":     "secret-that-was-mistyped-4715",
	}
	const shipped, failed, unauthorised, echoed, undead, moved = 1, 2, 3, 4, 5, 6
	guarded := newCluster(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "packship", secrets["Kafka password"]))
	dir := t.TempDir()
	accounts := filepath.Join(dir, "accounts.yaml")
	overwrite(t, filepath.Join(dir, "other-token"), []byte(secrets["other API token"]))
	overwrite(t, accounts, []byte("accounts:\n  - name: other\n    token_file: "+filepath.Join(dir, "other-token")+"\n    shops: [\"777\"]\n"))
	passwordFile, tokenFile := filepath.Join(dir, "kafka-password"), filepath.Join(dir, "api-token")
	overwrite(t, passwordFile, []byte(secrets["Kafka password"]))
	overwrite(t, tokenFile, []byte(secrets["wrong token"]))

	w := newWorld(t, upstreamtest.Options{
		Latency:  quick,
		Accounts: []upstreamtest.Account{{Name: "real", Token: secrets["API token"]}, {Name: "other", Token: secrets["other API token"]}},
	}, func(s *Settings) {
		s.KafkaBrokers = guarded.ListenAddrs()
		s.KafkaSASLMechanism, s.KafkaSASLUsername, s.KafkaSASLPasswordFile = "PLAIN", "packship", passwordFile
		s.UpstreamToken, s.UpstreamTokenFile, s.AccountsFile = "", tokenFile, accounts
		s.AdminToken = Secret(secrets["admin token"])
		s.LogLevel = "debug"
	})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(35), TID: fmt.Sprint(failed)})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.ShopUnauthorised, Shop: "302"})
	// An API that says in its answers with what it was asked.
	w.sim.AddFault(upstreamtest.Fault{
		Kind: upstreamtest.Raw, TID: fmt.Sprint(echoed), Token: secrets["API token"], Body: `{"code":614,"msg":"Bearer ` + secrets["API token"] + `","data":[{"msg":"` + secrets["API token"] + `"}]}`,
	})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.HTTPStatus(401), Token: secrets["wrong token"]})
	// And one that says so in the address of a redirect.
	w.sim.AddFault(upstreamtest.Fault{
		Kind: upstreamtest.Redirect(http.StatusTemporaryRedirect), TID: fmt.Sprint(moved), Location: "http://elsewhere.test/?token=" + secrets["API token"],
	})

	var said strings.Builder // all that the process and the commands say
	w.produce(
		order(shipped, ""), order(failed, ""), order(echoed, ""), "no order",
		strings.Replace(order(unauthorised, ""), testShop, "302", 1),
		strings.Replace(order(undead, ""), testShop, "777", 1),
	)
	p := w.spawn()
	r := &replica{t: t, url: p.url()}
	status := func() string {
		_, body := r.get("/api/status")
		said.WriteString(body)
		return body
	}
	eventually(t, "the account is halted for its token", func() bool { return strings.Contains(status(), `"halted"`) })
	overwrite(t, tokenFile, []byte(secrets["API token"]))
	r.do(http.MethodPost, "/api/accounts/default/resume", "wrong")
	r.do(http.MethodPost, "/api/accounts/default/resume", secrets["admin token"])
	w.await(2, 2, 1)
	eventually(t, "the shop is parked", func() bool { _, body := r.get("/api/status"); return strings.Contains(body, "parked_shops\":[{") })
	_, body := r.get("/api/status")
	link := regexp.MustCompile(`http://[^"]*/auth\?shop_id=302[^"]*`).FindString(body)
	if link == "" {
		t.Fatalf("the operator is not shown the link with which the shop is authorised:\n%s", body)
	}
	said.WriteString(strings.ReplaceAll(body, link, ""))
	w.produce(order(moved, ""))
	eventually(t, "the account is halted for the redirect", func() bool {
		_, body := r.get("/api/status")
		return strings.Contains(body, `"http_redirect"`)
	})
	for _, path := range []string{"/", "/metrics", "/readyz", "/healthz", "/api/orders/1", "/api/orders/2", "/api/orders/3", "/api/orders/4", "/api/orders/404"} {
		_, body := r.get(path)
		said.WriteString(body)
	}

	binary, err := executable()
	if err != nil {
		t.Fatal(err)
	}
	command := func(env []string, args ...string) {
		cmd := exec.CommandContext(t.Context(), binary, args...)
		cmd.Env = append(w.settings.environ(), env...)
		out, err := cmd.CombinedOutput()
		fmt.Fprintf(&said, "$ packship %s: %v\n%s\n", strings.Join(args, " "), err, out)
	}
	for _, args := range [][]string{
		{"config"},
		{"config", "--json"},
		{"config", "check"},
		{"config", "check", "--json"},
		{"version"},
		{"topics"},
		{"topics", "--json"},
		{"trace", "1"},
		{"trace", "4", "--json"},
		{"trace", "3"},
		{"dlq", "list"},
		{"dlq", "show", "0/0"},
		{"redrive"},
		{"redrive", "--execute"},
		{"replay", "--from", "first"},
		{"replay", "--from", "first", "--json"},
		{"schema"},
	} {
		command(nil, args...)
	}
	// Wrong in every way, and a password in a place where none belongs.
	direct := []string{
		"PACKSHIP_UPSTREAM_TOKEN=" + secrets["API token"], "PACKSHIP_KAFKA_SASL_PASSWORD=" + secrets["Kafka password"],
		"PACKSHIP_ADMIN_TOKEN=" + secrets["admin token"] + " with spaces",
	}
	command(direct, "config")
	command(direct, "config", "check")
	command([]string{"PACKSHIP_UPSTREAM_URL=http://user:" + secrets["API token"] + "@127.0.0.1/send"}, "config")
	command([]string{"PACKSHIP_UPSTREAM_URL=http://user:" + secrets["API token"] + "@127.0.0.1/send"}, "run")
	command([]string{"PACKSHIP_KAFKA_SASL_USERNAME=somebody"}, "topics")

	p.signal(syscall.SIGQUIT) // as a crash: Go writes where every goroutine is
	p.exit()
	said.WriteString(p.log.String())
	for _, topic := range []string{w.settings.TopicShipped, w.settings.TopicFailed, w.settings.TopicDLQ, w.settings.TopicLedger} {
		for _, rec := range w.read(topic) {
			fmt.Fprintf(&said, "%s: %s %s %s\n", topic, rec.Key, rec.Value, headers(rec))
		}
	}
	secrets["link of the shop"] = link
	all := said.String()
	for what, secret := range secrets {
		if i := strings.Index(all, secret); i >= 0 {
			t.Errorf("the %s is shown: …%s…", what, all[max(0, i-300):min(len(all), i+100)])
		}
	}
	// What must be there if the test has looked at what it means to.
	for _, mark := range []string{"goroutine ", `"status":"shipped"`, "packship_calls_total", "not_json", "http_redirect", redacted, "$ packship trace 1: <nil>", "$ packship replay --from first: <nil>"} {
		if !strings.Contains(all, mark) {
			t.Errorf("nothing of what was searched holds %q", mark)
		}
	}
}

func headers(rec schema.Record) string {
	var b strings.Builder
	for _, h := range rec.Headers {
		fmt.Fprintf(&b, "%s=%s ", h.Key, h.Value)
	}
	return b.String()
}
