package deploycheck

import (
	"bytes"
	"context"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"packship/cmd/internal/app"
	"packship/cmd/internal/cli"
)

// overlays are what one applies.
var overlays = []string{"demo", "production"}

// secretsFolder is where the Secret is mounted.
const secretsFolder = "/etc/packship/secrets"

func overlay(t *testing.T, name string) *objects {
	t.Helper()
	o := new(objects)
	o.collect(t, "deploy/k8s/overlays/"+name)
	return o
}

func nameOf(m meta) string { return m.Name }

func (o *objects) packship(t *testing.T) deployment {
	t.Helper()
	return named(t, o.deployments, func(d deployment) string { return nameOf(d.Metadata) }, "packship")
}

// variables reads an env file of kustomize.
func variables(t *testing.T, name string) map[string]string {
	t.Helper()
	env := map[string]string{}
	for i, line := range strings.Split(read(t, name), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || strings.TrimSpace(key) != key || strings.TrimSpace(value) != value {
			t.Fatalf("%s:%d: %q is not NAME=value", name, i+1, line)
		}
		if _, ok := env[key]; ok {
			t.Errorf("%s:%d: %s is there twice", name, i+1, key)
		}
		env[key] = value
	}
	return env
}

// settings loads what a pod of the overlay is given. Files of the Secret, of
// which it returns the names, are there.
func settings(t *testing.T, overlay string) (app.Settings, []string) {
	t.Helper()
	env := variables(t, "deploy/k8s/base/packship.env")
	maps.Copy(env, variables(t, "deploy/k8s/overlays/"+overlay+"/packship.env"))
	folder := t.TempDir()
	var secrets []string
	for name, value := range env {
		if file, ok := strings.CutPrefix(value, secretsFolder+"/"); ok {
			secrets = append(secrets, file)
			env[name] = filepath.Join(folder, file)
			if err := os.WriteFile(env[name], []byte("secret\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return load(t, env), secrets
}

// load loads settings from nothing but env, and fails if anything is wrong with
// them, for instance a name that is no setting's.
func load(t *testing.T, env map[string]string) app.Settings {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, app.Prefix+"_") {
			t.Setenv(name, "")
		}
	}
	for name, value := range env {
		t.Setenv(name, value)
	}
	s, err := app.Load(app.PartAll)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOverlaysSettings(t *testing.T) {
	for _, name := range overlays {
		t.Run(name, func(t *testing.T) {
			s, secrets := settings(t, name)
			k := one[kustomization](t, "deploy/k8s/overlays/"+name+"/kustomization.yaml")
			// The Secret is either made here, or the page says how to make it.
			provided := read(t, "docs/kubernetes.md") + read(t, "deploy/k8s/overlays/"+name+"/kustomization.yaml")
			if len(k.Secrets) > 0 {
				provided = strings.Join(k.Secrets[0].Literals, "\n")
			}
			for _, file := range secrets {
				if !strings.Contains(provided, file) {
					t.Errorf("nobody puts %s into the Secret", file)
				}
			}

			o := overlay(t, name)
			pod := o.packship(t).Spec.Template.Spec
			const margin = 10 * time.Second
			if grace := time.Duration(pod.TerminationGracePeriodSeconds) * time.Second; grace < s.ShutdownTimeout+margin {
				t.Errorf("terminationGracePeriodSeconds is %s, too short for %s_SHUTDOWN_TIMEOUT=%s and %s", grace, app.Prefix, s.ShutdownTimeout, margin)
			}
			c := pod.Containers[0]
			_, port, err := net.SplitHostPort(s.HTTPAddr)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Ports) != 1 || c.Ports[0].Name != "http" || strconv.Itoa(c.Ports[0].ContainerPort) != port {
				t.Errorf("the container's ports are %v, want %s under the name http", c.Ports, port)
			}

			policy := named(t, o.policies, func(p networkPolicy) string { return nameOf(p.Metadata) }, "packship").Spec
			policy.Egress = append(policy.Egress, patched(t, k)...)
			if !allows(policy.Ingress, c.Ports[0].ContainerPort) {
				t.Errorf("the network policy does not let Prometheus reach port %s", port)
			}
			for _, broker := range s.KafkaBrokers {
				_, port, err := net.SplitHostPort(broker)
				if err != nil {
					t.Fatal(err)
				}
				if !allows(policy.Egress, number(t, port)) {
					t.Errorf("the network policy does not let packship reach Kafka on port %s", port)
				}
			}
			u, err := url.Parse(s.UpstreamURL)
			if err != nil {
				t.Fatal(err)
			}
			api := u.Port()
			if api == "" {
				api = map[string]string{"http": "80", "https": "443"}[u.Scheme]
			}
			if !allows(policy.Egress, number(t, api)) {
				t.Errorf("the network policy does not let packship reach the API on port %s", api)
			}
		})
	}
}

// patched returns the rules for going out that an overlay adds.
func patched(t *testing.T, k kustomization) (rules []networkRule) {
	t.Helper()
	for _, p := range k.Patches {
		for _, node := range documents(t, "patch of "+p.Target.Kind, p.Patch) {
			var steps []struct {
				Op    string `yaml:"op"`
				Path  string `yaml:"path"`
				Value any    `yaml:"value"`
			}
			strict(t, "patch", node, &steps)
			for i, step := range steps {
				if step.Path == "/spec/egress/-" {
					var rule networkRule
					strict(t, "patch", node.Content[0].Content[i].Content[5], &rule)
					rules = append(rules, rule)
				}
			}
		}
	}
	return rules
}

func number(t *testing.T, port string) int {
	t.Helper()
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNamesAgree(t *testing.T) {
	for _, name := range overlays {
		t.Run(name, func(t *testing.T) {
			o := overlay(t, name)
			d := o.packship(t)
			pod := d.Spec.Template
			selects := func(what string, s map[string]string) {
				t.Helper()
				if len(s) == 0 {
					t.Errorf("%s selects everything", what)
				}
				for owner, p := range o.pods() {
					all := true
					for key, value := range s {
						all = all && p.Metadata.Labels[key] == value
					}
					if all != (owner == "packship") {
						t.Errorf("%s selects the pods of %s: %t", what, owner, all)
					}
				}
			}
			selects("the deployment", d.Spec.Selector.MatchLabels)
			for _, spread := range pod.Spec.TopologySpreadConstraints {
				selects("the spread over "+spread.TopologyKey, spread.LabelSelector.MatchLabels)
			}
			for _, b := range o.budgets {
				selects("the disruption budget", b.Spec.Selector.MatchLabels)
			}
			for _, p := range o.policies {
				selects("the network policy", p.Spec.PodSelector.MatchLabels)
			}
			svc := named(t, o.services, func(s service) string { return nameOf(s.Metadata) }, "packship")
			selects("the service", svc.Spec.Selector)
			port := pod.Spec.Containers[0].Ports[0]
			if p := svc.Spec.Ports[0]; p.TargetPort != port.Name || p.Port != port.ContainerPort {
				t.Errorf("the service's port is %v, the container's %v", p, port)
			}
			for _, m := range o.monitors {
				for key, value := range m.Spec.Selector.MatchLabels {
					if svc.Metadata.Labels[key] != value {
						t.Errorf("the service monitor asks for %s: %s, which the service has not", key, value)
					}
				}
				if e := m.Spec.Endpoints[0]; e.Port != svc.Spec.Ports[0].Name || !serves(t, e.Path) {
					t.Errorf("the service monitor asks port %s for %s", e.Port, e.Path)
				}
				if nameOf(svc.Metadata) != "packship" {
					t.Errorf("the alerts ask for the job packship, and the service monitor calls it %s", nameOf(svc.Metadata))
				}
			}
			for owner, pod := range o.pods() {
				mounted := map[string]bool{}
				for _, v := range pod.Spec.Volumes {
					mounted[v.Name] = true
				}
				for _, c := range pod.Spec.Containers {
					for _, m := range c.VolumeMounts {
						if !mounted[m.Name] {
							t.Errorf("%s mounts %s, which is no volume of it", owner, m.Name)
						}
					}
					if c.Image == "packship" {
						commandExists(t, c.Args...)
					}
				}
			}
			for _, owner := range []string{"packship", "packship-topics"} {
				pod := o.pods()[owner].Spec
				c := pod.Containers[0]
				if c.EnvFrom[0].ConfigMapRef.Name != "packship" {
					t.Errorf("%s takes its settings from %v", owner, c.EnvFrom)
				}
				if pod.Volumes[0].Secret.SecretName != "packship" || c.VolumeMounts[0].MountPath != secretsFolder || !c.VolumeMounts[0].ReadOnly {
					t.Errorf("%s mounts the Secret elsewhere: %v, %v", owner, pod.Volumes[0], c.VolumeMounts[0])
				}
				// Readable for the group that fsGroup makes the owner.
				if mode := pod.Volumes[0].Secret.DefaultMode; mode != 0o440 || pod.SecurityContext.FSGroup == 0 {
					t.Errorf("%s: the Secret has mode %o and group %d", owner, mode, pod.SecurityContext.FSGroup)
				}
			}
		})
	}
}

// serves reports whether a connector answers a path.
func serves(t *testing.T, asked string) bool {
	t.Helper()
	s := app.Defaults()
	s.KafkaBrokers, s.UpstreamToken = app.List{"127.0.0.1:1"}, "token"
	c, err := app.New(s, app.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	c.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, asked, nil))
	return w.Code != http.StatusNotFound
}

// commandExists fails if packship has no such command, or not these flags.
func commandExists(t *testing.T, args ...string) {
	t.Helper()
	var out bytes.Buffer
	code := cli.Main(context.WithoutCancel(t.Context()), append(slices.Clone(args), "--help"), cli.Streams{In: strings.NewReader(""), Out: &out, Err: &out})
	// Help of a command that does not exist is that of the one above it.
	if command := "packship " + strings.Join(words(args), " "); code != 0 || !strings.Contains(out.String(), command) {
		t.Errorf("packship %s is no command: exit %d\n%.300s", strings.Join(args, " "), code, out.String())
	}
}

// words returns the leading arguments that are no flags and look like a command.
func words(args []string) []string {
	for i, a := range args {
		if strings.Trim(a, "abcdefghijklmnopqrstuvwxyz") != "" {
			return args[:i]
		}
	}
	return args
}

func TestProbes(t *testing.T) {
	for _, name := range overlays {
		c := overlay(t, name).packship(t).Spec.Template.Spec.Containers[0]
		for probeName, p := range map[string]*probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
			switch {
			case p == nil:
				t.Errorf("%s: there is no %s probe", name, probeName)
			case p.HTTPGet.Port != c.Ports[0].Name || !serves(t, p.HTTPGet.Path):
				t.Errorf("%s: the %s probe asks port %s for %s, which nobody answers", name, probeName, p.HTTPGet.Port, p.HTTPGet.Path)
			}
		}
		// Kafka may be away for as long as it likes: the probes that kill must not
		// ask for readiness.
		if c.StartupProbe.HTTPGet.Path != "/healthz" || c.LivenessProbe.HTTPGet.Path != "/healthz" || c.ReadinessProbe.HTTPGet.Path != "/readyz" {
			t.Errorf("%s: the probes ask for %s, %s, %s", name, c.StartupProbe.HTTPGet.Path, c.LivenessProbe.HTTPGet.Path, c.ReadinessProbe.HTTPGet.Path)
		}
	}
}

// TestRollout holds the deployment to what makes an update painless.
func TestRollout(t *testing.T) {
	for _, name := range overlays {
		o := overlay(t, name)
		spec := o.packship(t).Spec
		if r := spec.Strategy.RollingUpdate; spec.Replicas < 2 || spec.Strategy.Type != "RollingUpdate" || r.MaxSurge != 1 || r.MaxUnavailable != 0 {
			t.Errorf("%s: %d replicas, %+v; want a new one ready before an old one goes", name, spec.Replicas, spec.Strategy)
		}
		if b := o.budgets[0].Spec; b.MaxUnavailable >= spec.Replicas || b.UnhealthyPodEvictionPolicy != "AlwaysAllow" {
			t.Errorf("%s: the disruption budget is %+v", name, b)
		}
		if len(spec.Template.Spec.TopologySpreadConstraints) == 0 {
			t.Errorf("%s: nothing keeps both replicas from one node", name)
		}
	}
}

// TestPodsAreRestricted checks what the restricted profile of the Pod Security
// Standards asks for, and some more of our own pods.
func TestPodsAreRestricted(t *testing.T) {
	for _, name := range overlays {
		for owner, pod := range overlay(t, name).pods() {
			s := pod.Spec
			if s.SecurityContext.SeccompProfile.Type != "RuntimeDefault" || !s.SecurityContext.RunAsNonRoot || s.SecurityContext.RunAsUser == 0 || s.SecurityContext.RunAsGroup == 0 {
				t.Errorf("%s: %s: the security context is %+v", name, owner, s.SecurityContext)
			}
			if s.AutomountServiceAccountToken == nil || *s.AutomountServiceAccountToken {
				t.Errorf("%s: %s has a token of Kubernetes", name, owner)
			}
			if s.EnableServiceLinks == nil || *s.EnableServiceLinks {
				t.Errorf("%s: %s has the variables of all services in its environment", name, owner)
			}
			for _, c := range s.Containers {
				sc := c.SecurityContext
				if sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation || !slices.Equal(sc.Capabilities.Drop, []string{"ALL"}) {
					t.Errorf("%s: %s: the container's security context is %+v", name, owner, sc)
				}
				if c.Image == "packship" && !sc.ReadOnlyRootFilesystem {
					t.Errorf("%s: %s may write into its image", name, owner)
				}
				if c.Resources.Limits["memory"] == "" || c.Resources.Limits["cpu"] != "" {
					t.Errorf("%s: %s: the limits are %v, want one of memory and none of CPU", name, owner, c.Resources.Limits)
				}
			}
		}
	}
}

// TestMemory holds GOMEMLIMIT to nine tenths of the container's memory.
func TestMemory(t *testing.T) {
	c := overlay(t, "production").packship(t).Spec.Template.Spec.Containers[0]
	limit := mebibytes(t, strings.TrimSuffix(c.Resources.Limits["memory"], "Mi"))
	if c.Resources.Requests["memory"] != c.Resources.Limits["memory"] {
		t.Errorf("memory: %s asked for, %s allowed", c.Resources.Requests["memory"], c.Resources.Limits["memory"])
	}
	for _, e := range c.Env {
		if e.Name == "GOMEMLIMIT" {
			if soft := mebibytes(t, strings.TrimSuffix(e.Value, "MiB")); soft < limit*85/100 || soft > limit*92/100 {
				t.Errorf("GOMEMLIMIT is %s with a limit of %d MiB, want nine tenths", e.Value, limit)
			}
			return
		}
	}
	t.Error("GOMEMLIMIT is not set")
}

func mebibytes(t *testing.T, n string) int {
	t.Helper()
	v, err := strconv.Atoi(n)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
