package deploycheck

import (
	"maps"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"packship/cmd/internal/app"
)

type composeFile struct {
	Name     string                    `yaml:"name"`
	Template composeService            `yaml:"x-packship"`
	Services map[string]composeService `yaml:"services"`
	Volumes  map[string]*struct{}      `yaml:"volumes"`
}

type composeService struct {
	Image      string `yaml:"image"`
	PullPolicy string `yaml:"pull_policy"`
	Build      *struct {
		Context    string            `yaml:"context"`
		Dockerfile string            `yaml:"dockerfile"`
		Args       map[string]string `yaml:"args"`
	} `yaml:"build"`
	Environment     map[string]string `yaml:"environment"`
	ReadOnly        bool              `yaml:"read_only"`
	CapDrop         []string          `yaml:"cap_drop"`
	SecurityOpt     []string          `yaml:"security_opt"`
	Command         []string          `yaml:"command"`
	StopGracePeriod time.Duration     `yaml:"stop_grace_period"`
	Restart         string            `yaml:"restart"`
	Ports           []string          `yaml:"ports"`
	Profiles        []string          `yaml:"profiles"`
	Volumes         []string          `yaml:"volumes"`
	DependsOn       map[string]struct {
		Condition string `yaml:"condition"`
	} `yaml:"depends_on"`
	Healthcheck *struct {
		Test     []string `yaml:"test"`
		Interval string   `yaml:"interval"`
		Timeout  string   `yaml:"timeout"`
		Retries  int      `yaml:"retries"`
	} `yaml:"healthcheck"`
}

func TestCompose(t *testing.T) {
	file := one[composeFile](t, "deploy/compose.yaml")
	running := 0
	for name, s := range file.Services {
		for dep := range s.DependsOn {
			if _, ok := file.Services[dep]; !ok {
				t.Errorf("%s depends on %s, which is not there", name, dep)
			}
		}
		for _, port := range s.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s shows %s to the whole network", name, port)
			}
		}
		for _, v := range s.Volumes {
			source, _, _ := strings.Cut(v, ":")
			if _, ok := file.Volumes[source]; ok {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, "deploy", source)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if s.Image != file.Template.Image {
			continue
		}
		commandExists(t, s.Command...)
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) {
			t.Errorf("%s may more than it needs", name)
		}
		if s.Environment["PACKSHIP_KAFKA_BROKERS"] == "" {
			continue // the simulated API
		}
		settings := load(t, s.Environment)
		for _, address := range []string{settings.KafkaBrokers[0], strings.TrimPrefix(strings.TrimSuffix(settings.UpstreamURL, "/tool/erps/send"), "http://")} {
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if _, ok := file.Services[host]; !ok {
				t.Errorf("%s asks for %s, which is not there", name, address)
			}
		}
		if s.Command[0] != "run" {
			continue
		}
		running++
		if s.StopGracePeriod < settings.ShutdownTimeout+10*time.Second {
			t.Errorf("%s is stopped after %s, too short for a shutdown timeout of %s", name, s.StopGracePeriod, settings.ShutdownTimeout)
		}
		if _, port, _ := net.SplitHostPort(settings.HTTPAddr); !strings.HasSuffix(s.Ports[0], ":"+port) {
			t.Errorf("%s shows port %s, and packship listens on %s", name, s.Ports[0], port)
		}
	}
	if running != 2 {
		t.Errorf("%d replicas run, want 2", running)
	}
	api, kafka := file.Services["api"], file.Services["kafka"]
	if !slices.Contains(api.Command, file.Template.Environment["PACKSHIP_UPSTREAM_TOKEN"]) {
		t.Error("the simulated API does not know packship's token")
	}
	if !strings.Contains(kafka.Environment["KAFKA_ADVERTISED_LISTENERS"], "//"+file.Template.Environment["PACKSHIP_KAFKA_BROKERS"]) {
		t.Error("Kafka does not name itself as packship calls it")
	}
}

// TestComposeMonitoring checks that Prometheus asks the replicas, and that
// Grafana finds Prometheus and the dashboard.
func TestComposeMonitoring(t *testing.T) {
	file := one[composeFile](t, "deploy/compose.yaml")
	type prometheus struct {
		Global struct {
			ScrapeInterval     string `yaml:"scrape_interval"`
			EvaluationInterval string `yaml:"evaluation_interval"`
		} `yaml:"global"`
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName       string `yaml:"job_name"`
			StaticConfigs []struct {
				Targets []string `yaml:"targets"`
			} `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	p := one[prometheus](t, "deploy/prometheus/prometheus.yml")
	mounts := strings.Join(file.Services["prometheus"].Volumes, " ")
	for _, rules := range p.RuleFiles {
		if !strings.Contains(mounts, ":"+rules+":") {
			t.Errorf("Prometheus reads %s, which is not mounted", rules)
		}
	}
	if p.ScrapeConfigs[0].JobName != "packship" {
		t.Errorf("the alerts ask for the job packship, not %s", p.ScrapeConfigs[0].JobName)
	}
	var asked []string
	_, port, _ := net.SplitHostPort(app.Defaults().HTTPAddr)
	for _, target := range p.ScrapeConfigs[0].StaticConfigs[0].Targets {
		name, ok := strings.CutSuffix(target, ":"+port)
		if !ok {
			t.Errorf("Prometheus asks %s, and packship listens on %s", target, port)
		}
		asked = append(asked, name)
	}
	var replicas []string
	for name := range maps.Keys(file.Services) {
		if s := file.Services[name]; len(s.Command) > 0 && s.Command[0] == "run" {
			replicas = append(replicas, name)
		}
	}
	slices.Sort(replicas)
	if !slices.Equal(asked, replicas) {
		t.Errorf("Prometheus asks %v, and the replicas are %v", asked, replicas)
	}

	type sources struct {
		APIVersion  int `yaml:"apiVersion"`
		Datasources []struct {
			Name      string `yaml:"name"`
			UID       string `yaml:"uid"`
			Type      string `yaml:"type"`
			Access    string `yaml:"access"`
			URL       string `yaml:"url"`
			IsDefault bool   `yaml:"isDefault"`
		} `yaml:"datasources"`
	}
	if d := one[sources](t, "deploy/grafana/provisioning/datasources/prometheus.yaml").Datasources[0]; d.URL != "http://prometheus:9090" || d.Type != "prometheus" || d.Access != "proxy" {
		t.Errorf("Grafana asks %+v", d)
	}
	type providers struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name    string `yaml:"name"`
			Type    string `yaml:"type"`
			Options struct {
				Path string `yaml:"path"`
			} `yaml:"options"`
		} `yaml:"providers"`
	}
	provider := one[providers](t, "deploy/grafana/provisioning/dashboards/packship.yaml").Providers[0]
	dashboards := provider.Options.Path
	if provider.Type != "file" {
		t.Errorf("Grafana takes dashboards of type %q", provider.Type)
	}
	if !slices.Contains(file.Services["grafana"].Volumes, "./grafana/packship.json:"+path.Join(dashboards, "packship.json")+":ro") {
		t.Errorf("the dashboard is not where Grafana looks, in %s", dashboards)
	}
}

// TestImage holds the Dockerfile to the module, the manifests and the names in
// the code.
func TestImage(t *testing.T) {
	dockerfile := read(t, "deploy/Dockerfile")
	find := func(pattern string) []string {
		t.Helper()
		m := regexp.MustCompile(pattern).FindStringSubmatch(dockerfile)
		if m == nil {
			t.Fatalf("the Dockerfile has nothing like %s", pattern)
		}
		return m[1:]
	}
	language := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "go.mod"))[1]
	if got := find(`golang:(\S+)-alpine`)[0]; got != language {
		t.Errorf("the image is built with Go %s, the module wants %s", got, language)
	}
	user := find(`(?m)^USER (\d+):(\d+)$`)
	pod := overlay(t, "production").packship(t).Spec.Template.Spec
	if user[0] != strconv.Itoa(pod.SecurityContext.RunAsUser) || user[1] != strconv.Itoa(pod.SecurityContext.RunAsGroup) {
		t.Errorf("the image runs as %v, the pod as %d:%d", user, pod.SecurityContext.RunAsUser, pod.SecurityContext.RunAsGroup)
	}
	if port := find(`(?m)^EXPOSE (\d+)$`)[0]; ":"+port != app.Defaults().HTTPAddr {
		t.Errorf("the image names port %s, and packship listens on %s", port, app.Defaults().HTTPAddr)
	}
	// The linker says nothing if there is no such variable.
	name := find(`-X packship/cmd/internal/app\.(\w+)=\$VERSION`)[0]
	if !strings.Contains(read(t, "cmd/internal/app/build.go"), "\nvar "+name+", revision string\n") {
		t.Errorf("the version is stamped into %s, which is not in build.go", name)
	}
	if strings.Count(dockerfile, "\nFROM scratch\n") != 1 || !strings.Contains(dockerfile, "CGO_ENABLED=0") {
		t.Error("the image is more than one static binary")
	}

	// What is left out of the build context must not be needed.
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if .Module}}{{if .Module.Main}}{{.ImportPath}}{{end}}{{end}}", "./cmd/packship")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	kept := strings.Split(read(t, ".dockerignore"), "\n")
	for pkg := range strings.FieldsSeq(string(out)) {
		folder, _, _ := strings.Cut(strings.TrimPrefix(pkg, "packship/"), "/")
		if !slices.Contains(kept, "!"+folder) {
			t.Errorf(".dockerignore leaves out %s, which %s is in", folder, pkg)
		}
	}
}
