package deploycheck

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"packship/cmd/internal/app"
)

type ruleFile struct {
	Groups []struct {
		Name  string `yaml:"name"`
		Rules []struct {
			Alert       string            `yaml:"alert"`
			Record      string            `yaml:"record"`
			Expr        string            `yaml:"expr"`
			For         string            `yaml:"for"`
			Labels      map[string]string `yaml:"labels"`
			Annotations map[string]string `yaml:"annotations"`
		} `yaml:"rules"`
	} `yaml:"groups"`
}

// exposed is what a connector shows: the labels of each series, by the name of
// the metric.
type exposed map[string][]map[string]string

// metrics returns what a connector that has just become active shows.
var metrics = sync.OnceValue(func() (shown struct {
	exposed
	text string
	err  error
},
) {
	shown.text, shown.err = scrape()
	shown.exposed = parse(shown.text)
	return shown
})

// patience is for a connector that hangs, not for the machine's speed.
const patience = time.Minute

// scrape runs a connector with an embedded broker until the metrics of its
// partitions are there.
func scrape() (_ string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		return "", err
	}
	defer cluster.Close()
	s := app.Defaults()
	s.KafkaBrokers, s.HTTPAddr = cluster.ListenAddrs(), "127.0.0.1:0"
	dir, err := os.MkdirTemp("", "packship")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if s.AccountsFile, err = accounts(dir); err != nil {
		return "", err
	}
	k := app.NewKafka(&s, nil, s.Topics()...)
	defer k.Close()
	if err := k.Connect(ctx); err != nil {
		return "", err
	}
	if _, err := k.CreateTopics(ctx, 1, 1); err != nil {
		return "", err
	}
	address := make(chan net.Addr, 1)
	c, err := app.New(s, app.Options{Serving: func(a net.Addr) { address <- a }})
	if err != nil {
		return "", err
	}
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.Run(run) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()
	var a net.Addr
	select {
	case a = <-address:
	case err := <-ended:
		ended <- nil
		return "", err
	}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.String()+"/metrics", nil)
		if err != nil {
			return "", err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", err
		}
		text, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			return "", err
		}
		// The series of a partition are the last that come.
		if len(parse(string(text))["packship_last_commit_timestamp_seconds"]) > 0 {
			return string(text), nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// accounts writes an accounts file with an account that has all that one can have.
func accounts(dir string) (string, error) {
	token, file := filepath.Join(dir, "token"), filepath.Join(dir, "accounts.yaml")
	text := "accounts: [{name: default, token_file: " + token + ", balance: {points: 1, at: 2020-01-01T00:00:00Z}}]"
	return file, errors.Join(os.WriteFile(token, []byte("token"), 0o600), os.WriteFile(file, []byte(text), 0o600))
}

var (
	sample = regexp.MustCompile(`(?m)^([a-z_]+)(?:\{(.*)\})? [^ ]+$`)
	label  = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
)

// parse reads what Prometheus reads.
func parse(text string) exposed {
	shown := exposed{}
	for _, m := range sample.FindAllStringSubmatch(text, -1) {
		labels := map[string]string{}
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			labels[l[1]] = l[2]
		}
		shown[m[1]] = append(shown[m[1]], labels)
	}
	return shown
}

var (
	metricName = regexp.MustCompile(`\b(?:packship|go|process)_[a-z_]+\b`)
	selected   = regexp.MustCompile(`\b((?:packship|go|process)_[a-z_]+)\{([^}]*)\}`)
	matcher    = regexp.MustCompile(`(\w+)(=~|!=|!~|=)"([^"]*)"`)
	grouping   = regexp.MustCompile(`\b(?:by|on) \(([a-z_, ]*)\)`)
)

// outside are the labels that Prometheus adds, and le, which makes a histogram.
var outside = []string{"job", "instance", "namespace", "le"}

// TestMetricsExist finds alerts and panels that would be silent for ever, since
// a connector does not show what they ask for.
func TestMetricsExist(t *testing.T) {
	shown := metrics()
	if shown.err != nil {
		t.Fatal(shown.err)
	}
	for name, expressions := range expressions(t) {
		for _, expr := range expressions {
			used := map[string]bool{}
			for _, metric := range metricName.FindAllString(strings.ReplaceAll(expr, "job:packship", ""), -1) {
				series := shown.exposed[metric]
				if len(series) == 0 {
					t.Errorf("%s: %s is not a metric\n%s", name, metric, expr)
					continue
				}
				for label := range series[0] {
					used[label] = true
				}
			}
			for _, m := range selected.FindAllStringSubmatch(expr, -1) {
				for _, cond := range matcher.FindAllStringSubmatch(m[2], -1) {
					key, op, value := cond[1], cond[2], cond[3]
					if strings.Contains(value, "$") || slices.Contains(outside, key) {
						continue
					}
					for _, value := range alternatives(op, value) {
						if !slices.ContainsFunc(shown.exposed[m[1]], func(s map[string]string) bool { return s[key] == value }) {
							t.Errorf("%s: %s never has %s=%q\n%s", name, m[1], key, value, expr)
						}
					}
				}
			}
			for _, m := range grouping.FindAllStringSubmatch(expr, -1) {
				for key := range strings.SplitSeq(m[1], ", ") {
					if !slices.Contains(outside, key) && !used[key] {
						t.Errorf("%s: no metric there has a label %s\n%s", name, key, expr)
					}
				}
			}
		}
	}
}

// alternatives returns the values that a matcher asks for.
func alternatives(op, value string) []string {
	if op == "=~" || op == "!~" {
		return strings.Split(value, "|")
	}
	return []string{value}
}

// expressions returns those of the alerts and of the dashboard, by where they
// are.
func expressions(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, g := range one[ruleFile](t, "deploy/prometheus/rules.yaml").Groups {
		for _, r := range g.Rules {
			all["rule "+r.Alert+r.Record] = []string{r.Expr}
		}
	}
	for _, p := range dashboard(t).Panels {
		for _, target := range p.Targets {
			all["panel "+p.Title] = append(all["panel "+p.Title], target.Expr)
		}
	}
	if len(all) < 40 {
		t.Fatalf("only %d rules and panels found", len(all))
	}
	return all
}

type dashboardFile struct {
	UID    string `json:"uid"`
	Panels []struct {
		ID          int    `json:"id"`
		Title       string `json:"title"`
		Description string `json:"description"`
		GridPos     struct {
			H, W, X, Y int
		} `json:"gridPos"`
		Targets []struct {
			Expr string `json:"expr"`
		} `json:"targets"`
	} `json:"panels"`
	Templating struct {
		List []struct {
			Name string `json:"name"`
		} `json:"list"`
	} `json:"templating"`
}

func dashboard(t *testing.T) dashboardFile {
	t.Helper()
	var d dashboardFile
	if err := json.Unmarshal([]byte(read(t, "deploy/grafana/packship.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDashboard finds panels that lie over each other, have the same id, or use
// a variable that is not there.
func TestDashboard(t *testing.T) {
	d := dashboard(t)
	ids := map[int]bool{}
	variables := map[string]bool{"__rate_interval": true}
	for _, v := range d.Templating.List {
		variables[v.Name] = true
	}
	for i, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		for _, o := range d.Panels[:i] {
			a, b := p.GridPos, o.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("panels %d and %d lie over each other", o.ID, p.ID)
			}
		}
		for _, target := range p.Targets {
			for _, v := range regexp.MustCompile(`\$(\w+)`).FindAllStringSubmatch(target.Expr, -1) {
				if !variables[v[1]] {
					t.Errorf("panel %d uses $%s, which is no variable", p.ID, v[1])
				}
			}
		}
	}
}

// TestEveryAlert checks that an alert says how grave it is and what to do, and
// that it is tested for its silence as well as for its noise.
func TestEveryAlert(t *testing.T) {
	type tests struct {
		RuleFiles          []string `yaml:"rule_files"`
		EvaluationInterval string   `yaml:"evaluation_interval"`
		Tests              []struct {
			Name        string `yaml:"name"`
			Interval    string `yaml:"interval"`
			InputSeries []struct {
				Series string `yaml:"series"`
				Values string `yaml:"values"`
			} `yaml:"input_series"`
			AlertRuleTest []struct {
				EvalTime  string `yaml:"eval_time"`
				Alertname string `yaml:"alertname"`
				ExpAlerts []struct {
					ExpLabels      map[string]string `yaml:"exp_labels"`
					ExpAnnotations map[string]string `yaml:"exp_annotations"`
				} `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}
	fires, keepsSilent := map[string]bool{}, map[string]bool{}
	for _, test := range one[tests](t, "deploy/prometheus/rules_test.yaml").Tests {
		for _, c := range test.AlertRuleTest {
			if len(c.ExpAlerts) > 0 {
				fires[c.Alertname] = true
			} else {
				keepsSilent[c.Alertname] = true
			}
		}
	}
	sections := headings(read(t, "docs/runbook.md"))
	alerts := map[string]bool{}
	for _, g := range one[ruleFile](t, "deploy/prometheus/rules.yaml").Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			alerts[r.Alert] = true
			if s := r.Labels["severity"]; s != "page" && s != "ticket" {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
			anchor := strings.ToLower(r.Alert)
			if r.Annotations["summary"] == "" || r.Annotations["runbook"] != "docs/runbook.md#"+anchor {
				t.Errorf("%s: annotations %v", r.Alert, r.Annotations)
			}
			if !slices.Contains(sections, anchor) {
				t.Errorf("docs/runbook.md has no section %s", r.Alert)
			}
			if !fires[r.Alert] || !keepsSilent[r.Alert] {
				t.Errorf("%s: tested to fire: %t, tested to be silent: %t", r.Alert, fires[r.Alert], keepsSilent[r.Alert])
			}
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^#+ (Packship\w+)$`).FindAllStringSubmatch(read(t, "docs/runbook.md"), -1) {
		if !alerts[m[1]] {
			t.Errorf("docs/runbook.md has a section %s, which is no alert", m[1])
		}
	}
}

// TestPrometheusRule keeps the alerts for the Prometheus operator the same.
func TestPrometheusRule(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Written by go test ./cmd/internal/deploycheck -update from deploy/prometheus/rules.yaml.\n")
	b.WriteString("apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: packship\n")
	b.WriteString("  labels:\n    app.kubernetes.io/name: packship\nspec:\n")
	_, groups, ok := strings.Cut(read(t, "deploy/prometheus/rules.yaml"), "\ngroups:\n")
	if !ok {
		t.Fatal("rules.yaml has no groups")
	}
	b.WriteString("  groups:\n")
	for line := range strings.Lines(groups) {
		if strings.TrimSpace(line) != "" {
			b.WriteString("  ")
		}
		b.WriteString(line)
	}
	keep(t, "deploy/k8s/components/monitoring/prometheusrule.yaml", b.String())
}

// TestRulesByPromtool asks promtool, where there is one.
func TestRulesByPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed")
	}
	for _, args := range [][]string{{"check", "config", "--syntax-only", "prometheus.yml"}, {"check", "rules", "rules.yaml"}, {"test", "rules", "rules_test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = root + "/deploy/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
