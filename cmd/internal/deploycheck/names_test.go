package deploycheck

import (
	"encoding/json"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"packship/cmd/internal/app"
)

// pinned is a tag that says which image is meant.
var pinned = regexp.MustCompile(`^v?\d+\.\d+\.\d+$`)

// TestOverlayReferences finds names that stand for something of the overlay and
// stand for nothing.
func TestOverlayReferences(t *testing.T) {
	for _, name := range overlays {
		t.Run(name, func(t *testing.T) {
			o := overlay(t, name)
			k := one[kustomization](t, "deploy/k8s/overlays/"+name+"/kustomization.yaml")
			kinds := map[string]bool{} // kind and name
			for _, s := range o.simples {
				kinds[s.Kind+" "+s.Metadata.Name] = true
			}
			for _, d := range o.deployments {
				kinds["Deployment "+d.Metadata.Name] = true
			}
			for _, j := range o.jobs {
				kinds["Job "+j.Metadata.Name] = true
			}
			for _, p := range o.policies {
				kinds["NetworkPolicy "+p.Metadata.Name] = true
			}
			for _, p := range k.Patches {
				if !kinds[p.Target.Kind+" "+p.Target.Name] {
					t.Errorf("a patch is for %s %s, which is not there", p.Target.Kind, p.Target.Name)
				}
			}
			for owner, pod := range o.pods() {
				if account := pod.Spec.ServiceAccountName; account != "" && !kinds["ServiceAccount "+account] {
					t.Errorf("%s runs as %s, and there is no such account", owner, account)
				}
			}
			for _, i := range k.Images {
				if name == "production" && !pinned.MatchString(i.NewTag) {
					t.Errorf("the image of packship is %q, which is another one tomorrow", i.NewTag)
				}
			}
			policy := named(t, o.policies, func(p networkPolicy) string { return nameOf(p.Metadata) }, "packship").Spec
			if !allows(policy.Egress, 53) {
				t.Error("the network policy does not let packship look up names")
			}

			// A host without a dot is a service of the overlay.
			s, secrets := settings(t, name)
			u, err := url.Parse(s.UpstreamURL)
			if err != nil {
				t.Fatal(err)
			}
			for _, address := range append(slices.Clone(s.KafkaBrokers), u.Host) {
				host, port, _ := net.SplitHostPort(address)
				if host == "" || strings.Contains(host, ".") {
					continue
				}
				svc := named(t, o.services, func(s service) string { return nameOf(s.Metadata) }, host)
				if got := strconv.Itoa(svc.Spec.Ports[0].Port); got != port {
					t.Errorf("packship asks %s, and the service has port %s", address, got)
				}
			}
			// Each file of the Secret is named as a whole where it is said how to
			// make it.
			provided := read(t, "deploy/k8s/overlays/"+name+"/kustomization.yaml") + read(t, "docs/kubernetes.md")
			for _, file := range secrets {
				if !regexp.MustCompile(`(^|[^\w.-])` + regexp.QuoteMeta(file) + `($|[^\w.-])`).MatchString(provided) {
					t.Errorf("nobody says that the Secret needs %s", file)
				}
			}
		})
	}
}

// TestComposeReferences does the same for compose: who asks whom, on which port.
func TestComposeReferences(t *testing.T) {
	file := one[composeFile](t, "deploy/compose.yaml")
	for name, s := range file.Services {
		for dep, on := range s.DependsOn {
			switch on.Condition {
			case "service_started", "service_completed_successfully":
			case "service_healthy":
				if file.Services[dep].Healthcheck == nil {
					t.Errorf("%s waits until %s is healthy, which nobody checks", name, dep)
				}
			default:
				t.Errorf("%s waits for %s to be %q", name, dep, on.Condition)
			}
		}
		image, tag, _ := strings.Cut(s.Image, ":")
		if s.Image != file.Template.Image && !pinned.MatchString(tag) {
			t.Errorf("the image of %s, %s, is another one tomorrow", name, image)
		}
	}
	inside := func(service, port string) {
		t.Helper()
		if ports := file.Services[service].Ports; len(ports) != 1 || !strings.HasSuffix(ports[0], ":"+port) {
			t.Errorf("%s shows %v, and listens on %s", service, ports, port)
		}
	}
	env := file.Template.Environment
	u, err := url.Parse(env["PACKSHIP_UPSTREAM_URL"])
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(file.Services["api"].Command, "0.0.0.0:"+u.Port()) {
		t.Errorf("packship asks the API on port %s, and it listens as %v", u.Port(), file.Services["api"].Command)
	}
	inside("api", u.Port())
	inside("grafana", "3000") // its own default, like the next
	inside("prometheus", "9090")

	kafka := file.Services["kafka"]
	listeners, advertised := endpoints(kafka.Environment["KAFKA_LISTENERS"]), endpoints(kafka.Environment["KAFKA_ADVERTISED_LISTENERS"])
	for name, address := range advertised {
		_, port, _ := strings.Cut(address, ":")
		if _, bound, _ := strings.Cut(listeners[name], ":"); bound != port {
			t.Errorf("Kafka says that %s is on port %s, and listens on %s", name, port, bound)
		}
	}
	_, port, _ := strings.Cut(advertised["CLIENT"], ":")
	inside("kafka", port)
	if check := kafka.Healthcheck.Test; check[len(check)-1] != advertised["CLIENT"] {
		t.Errorf("the health check of Kafka asks %s, not %s", check[len(check)-1], advertised["CLIENT"])
	}
	if advertised["BROKER"] != env["PACKSHIP_KAFKA_BROKERS"] {
		t.Errorf("packship asks %s, Kafka is %s", env["PACKSHIP_KAFKA_BROKERS"], advertised["BROKER"])
	}
}

// endpoints reads Kafka's lists of listeners: NAME://host:port.
func endpoints(list string) map[string]string {
	all := map[string]string{}
	for one := range strings.SplitSeq(list, ",") {
		name, address, _ := strings.Cut(one, "://")
		all[name] = address
	}
	return all
}

// TestDashboardSources checks that everything in the dashboard asks the source
// that its variable chooses, and that the variables ask for metrics that exist.
func TestDashboardSources(t *testing.T) {
	shown := metrics()
	if shown.err != nil {
		t.Fatal(shown.err)
	}
	var dashboard any
	if err := json.Unmarshal([]byte(read(t, "deploy/grafana/packship.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	sources, queries := 0, 0
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			if source, ok := v["datasource"].(map[string]any); ok {
				sources++
				if kind, uid := source["type"], source["uid"]; uid != "-- Grafana --" && (kind != "prometheus" || uid != "${datasource}") {
					t.Errorf("a part of the dashboard asks %v %v", kind, uid)
				}
			}
			for _, key := range []string{"query", "definition"} {
				if text, ok := v[key].(string); ok && strings.HasPrefix(text, "label_values(") {
					queries++
					if metric := metricName.FindString(text); len(shown.exposed[metric]) == 0 {
						t.Errorf("%s: %s is not a metric", text, metric)
					}
				}
			}
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(dashboard)
	if sources < 20 || queries == 0 {
		t.Errorf("only %d sources and %d queries of variables found", sources, queries)
	}
}

// TestDockerfileStages follows the binary through the Dockerfile.
func TestDockerfileStages(t *testing.T) {
	dockerfile := read(t, "deploy/Dockerfile")
	find := func(pattern string) string {
		t.Helper()
		m := regexp.MustCompile(pattern).FindStringSubmatch(dockerfile)
		if m == nil {
			t.Fatalf("the Dockerfile has nothing like %s", pattern)
		}
		return m[1]
	}
	built, copied, place := find(` -o (\S+) \./cmd/packship`), find(`COPY --from=build (/out/\S+) `), find(`COPY --from=build /out/\S+ (\S+)`)
	if built != copied {
		t.Errorf("%s is built and %s is copied", built, copied)
	}
	if entry := find(`ENTRYPOINT \["([^"]+)"\]`); entry != place {
		t.Errorf("the image starts %s, and the binary is %s", entry, place)
	}
	commandExists(t, find(`CMD \["([^"]+)"\]`))
	for _, flag := range []string{"-trimpath", "CGO_ENABLED=0", "-s -w", "app.version=$VERSION", "app.revision=$REVISION"} {
		if !strings.Contains(dockerfile, flag) {
			t.Errorf("the binary is built without %s", flag)
		}
	}
	if app.Defaults().HTTPAddr != ":"+find(`EXPOSE (\d+)`) {
		t.Error("the image exposes another port than packship listens on")
	}
}
