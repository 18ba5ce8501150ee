package manifests

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// A workload is what makes pods.
type workload struct {
	name     string
	selector *metav1.LabelSelector // nil for a Job, which finds its pods by itself
	pod      corev1.PodTemplateSpec
}

func (w workload) containers() []corev1.Container {
	return slices.Concat(w.pod.Spec.InitContainers, w.pod.Spec.Containers)
}

func (r rendering) workloads(t *testing.T) []workload {
	t.Helper()
	var all []workload
	for _, o := range r.objects {
		switch o := o.(type) {
		case *appsv1.Deployment:
			all = append(all, workload{o.Name, o.Spec.Selector, o.Spec.Template})
		case *batchv1.Job:
			all = append(all, workload{o.Name, o.Spec.Selector, o.Spec.Template})
		case *corev1.ConfigMap, *corev1.Namespace, *corev1.Secret, *corev1.Service, *corev1.ServiceAccount,
			*networkingv1.NetworkPolicy, *policyv1.PodDisruptionBudget, *monitoringv1.PrometheusRule, *monitoringv1.ServiceMonitor:
		default:
			t.Fatalf("%s is a %T: these tests have to be told whether that makes pods, and what it refers to", o.GetName(), o)
		}
	}
	return all
}

// A need is something that a pod does not start without.
type need struct {
	kind, name string
	key        string // of a Secret or ConfigMap; empty if all of it is meant
}

func (n need) String() string {
	if n.key != "" {
		return n.key + " of the " + n.kind + " " + n.name
	}
	return "the " + n.kind + " " + n.name
}

// needs returns what a workload refers to by name.
func (r rendering) needs(w workload) []need {
	var all []need
	if account := w.pod.Spec.ServiceAccountName; account != "" {
		all = append(all, need{"ServiceAccount", account, ""})
	}
	for _, s := range w.pod.Spec.ImagePullSecrets {
		all = append(all, need{"Secret", s.Name, ""})
	}
	volumes := map[string]need{} // by their names; those that are empty need nothing
	for _, v := range w.pod.Spec.Volumes {
		switch {
		case v.Secret != nil:
			volumes[v.Name] = need{"Secret", v.Secret.SecretName, ""}
		case v.ConfigMap != nil:
			volumes[v.Name] = need{"ConfigMap", v.ConfigMap.Name, ""}
		case v.PersistentVolumeClaim != nil:
			volumes[v.Name] = need{"PersistentVolumeClaim", v.PersistentVolumeClaim.ClaimName, ""}
		case v.EmptyDir != nil:
		default:
			volumes[v.Name] = need{"volume of a sort that this test knows", v.Name, ""}
		}
	}
	all = slices.AppendSeq(all, maps.Values(volumes))
	for _, c := range w.containers() {
		var values []string
		for _, from := range c.EnvFrom {
			if from.ConfigMapRef != nil {
				all = append(all, need{"ConfigMap", from.ConfigMapRef.Name, ""})
				if m := r.configMap(from.ConfigMapRef.Name); m != nil {
					values = slices.AppendSeq(values, maps.Values(m.Data))
				}
			}
			if from.SecretRef != nil {
				all = append(all, need{"Secret", from.SecretRef.Name, ""})
			}
		}
		for _, e := range c.Env {
			values = append(values, e.Value)
			if e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil {
				all = append(all, need{"ConfigMap", e.ValueFrom.ConfigMapKeyRef.Name, e.ValueFrom.ConfigMapKeyRef.Key})
			}
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				all = append(all, need{"Secret", e.ValueFrom.SecretKeyRef.Name, e.ValueFrom.SecretKeyRef.Key})
			}
		}
		// A setting may be the name of a file.
		for _, file := range values {
			if !strings.HasPrefix(file, "/") {
				continue
			}
			all = append(all, mountedAs(file, c, volumes))
		}
	}
	return all
}

// mountedAs returns what a file in a container is made of.
func mountedAs(file string, c corev1.Container, volumes map[string]need) need {
	for _, m := range c.VolumeMounts {
		if key, ok := strings.CutPrefix(file, m.MountPath); ok && (key == "" || key[0] == '/') {
			from := volumes[m.Name]
			if from.kind != "" {
				from.key = strings.TrimPrefix(key, "/")
			}
			return from
		}
	}
	return need{"mounted file", file, ""}
}

func (r rendering) configMap(name string) *corev1.ConfigMap {
	for _, m := range of[*corev1.ConfigMap](r) {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// has reports whether the overlay brings what a pod needs.
func (r rendering) has(n need) bool {
	return slices.ContainsFunc(r.objects, func(o object) bool {
		if o.GetObjectKind().GroupVersionKind().Kind != n.kind || o.GetName() != n.name {
			return false
		}
		if n.key == "" {
			return true
		}
		switch o := o.(type) {
		case *corev1.ConfigMap:
			_, ok := o.Data[n.key]
			return ok
		case *corev1.Secret:
			_, ok := o.Data[n.key]
			return ok
		}
		return false
	})
}

// madeByHand reports whether docs/kubernetes.md says how to make it.
func (r rendering) madeByHand(t *testing.T, n need) bool {
	t.Helper()
	_, command, ok := strings.Cut(text(t, filepath.Join(root, "docs/kubernetes.md")), "kubectl -n "+r.kustomization.Namespace+" create secret generic "+n.name+" ")
	command, _, _ = strings.Cut(command, "```")
	return ok && n.kind == "Secret" && (n.key == "" || slices.Contains(strings.Fields(command), "--from-file="+n.key))
}

func TestWhatPodsNeedIsThere(t *testing.T) {
	for _, name := range overlays(t) {
		t.Run(name, func(t *testing.T) {
			r := render(t, name)
			for _, w := range r.workloads(t) {
				for _, n := range r.needs(w) {
					if n != (need{}) && !r.has(n) && !r.madeByHand(t, n) {
						t.Errorf("%s needs %s, which is not there, and docs/kubernetes.md does not say how to make it", w.name, n)
					}
				}
				for _, c := range w.containers() {
					for _, m := range c.VolumeMounts {
						if !slices.ContainsFunc(w.pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
							t.Errorf("%s mounts %s, which is no volume of it", w.name, m.Name)
						}
					}
				}
			}
		})
	}
}

// TestSelectors: what has the name of a Deployment is about its pods and no
// others.
func TestSelectors(t *testing.T) {
	for _, name := range overlays(t) {
		t.Run(name, func(t *testing.T) {
			r := render(t, name)
			workloads := r.workloads(t)
			selects := func(what, own string, s labels.Selector) {
				t.Helper()
				var selected []string
				for _, w := range workloads {
					if s.Matches(labels.Set(w.pod.Labels)) {
						selected = append(selected, w.name)
					}
				}
				if !slices.Equal(selected, []string{own}) {
					t.Errorf("%s %s selects the pods of %q", what, own, selected)
				}
			}
			expressed := func(s *metav1.LabelSelector) labels.Selector {
				t.Helper()
				selector, err := metav1.LabelSelectorAsSelector(s)
				if err != nil {
					t.Error(err)
					return labels.Nothing()
				}
				return selector
			}
			for _, w := range workloads {
				if w.selector != nil {
					selects("the Deployment", w.name, expressed(w.selector))
				}
				for _, s := range w.pod.Spec.TopologySpreadConstraints {
					if s.TopologyKey != corev1.LabelTopologyZone && s.TopologyKey != corev1.LabelHostname {
						t.Errorf("%s is spread over %s, which nodes do not have", w.name, s.TopologyKey)
					}
					selects("the spread over "+s.TopologyKey+" of", w.name, expressed(s.LabelSelector))
				}
			}
			for _, s := range of[*corev1.Service](r) {
				selects("the Service", s.Name, labels.SelectorFromSet(s.Spec.Selector))
			}
			for _, b := range of[*policyv1.PodDisruptionBudget](r) {
				selects("the PodDisruptionBudget", b.Name, expressed(b.Spec.Selector))
			}
			for _, p := range of[*networkingv1.NetworkPolicy](r) {
				selects("the NetworkPolicy", p.Name, expressed(&p.Spec.PodSelector))
			}
			for _, m := range of[*monitoringv1.ServiceMonitor](r) {
				var selected []string
				for _, s := range of[*corev1.Service](r) {
					if expressed(&m.Spec.Selector).Matches(labels.Set(s.Labels)) {
						selected = append(selected, s.Name)
					}
				}
				if !slices.Equal(selected, []string{m.Name}) || m.Spec.NamespaceSelector.Any || m.Spec.NamespaceSelector.MatchNames != nil {
					t.Errorf("the ServiceMonitor %s selects the Services %q, and the namespaces %+v", m.Name, selected, m.Spec.NamespaceSelector)
				}
			}
		})
	}
}

// listens reports whether one of the containers has the port, by number or name.
func listens(port intstr.IntOrString, protocol corev1.Protocol, containers ...corev1.Container) bool {
	for _, c := range containers {
		for _, p := range c.Ports {
			of := p.Protocol
			if of == "" {
				of = corev1.ProtocolTCP
			}
			if of == protocol && (port.Type == intstr.Int && port.IntVal == p.ContainerPort || port.Type == intstr.String && port.StrVal == p.Name) {
				return true
			}
		}
	}
	return false
}

func TestPorts(t *testing.T) {
	for _, name := range overlays(t) {
		t.Run(name, func(t *testing.T) {
			r := render(t, name)
			containers := map[string][]corev1.Container{} // by the workload's name
			for _, w := range r.workloads(t) {
				containers[w.name] = w.containers()
				for _, c := range w.containers() {
					if i := slices.Index(c.Args, "--addr"); i >= 0 {
						port, ok := strings.CutPrefix(c.Args[i+1], "0.0.0.0:")
						if !ok || !listens(intstr.Parse(port), corev1.ProtocolTCP, c) {
							t.Errorf("%s listens at %s, which is no port of %s", w.name, c.Args[i+1], c.Name)
						}
					}
					for what, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
						switch {
						case p == nil:
						case p.HTTPGet != nil && !listens(p.HTTPGet.Port, corev1.ProtocolTCP, c):
							t.Errorf("%s: the %s probe asks %s, which is no port of %s", w.name, what, p.HTTPGet.Port.String(), c.Name)
						case p.TCPSocket != nil && !listens(p.TCPSocket.Port, corev1.ProtocolTCP, c):
							t.Errorf("%s: the %s probe asks %s, which is no port of %s", w.name, what, p.TCPSocket.Port.String(), c.Name)
						case p.HTTPGet == nil && p.TCPSocket == nil:
							t.Errorf("%s: the %s probe asks for neither a page nor a port", w.name, what)
						}
					}
				}
			}
			services := map[string]*corev1.Service{}
			for _, s := range of[*corev1.Service](r) {
				services[s.Name] = s
				for _, p := range s.Spec.Ports {
					target, protocol := p.TargetPort, p.Protocol
					if target == (intstr.IntOrString{}) {
						target = intstr.FromInt32(p.Port)
					}
					if protocol == "" {
						protocol = corev1.ProtocolTCP
					}
					if !listens(target, protocol, containers[s.Name]...) {
						t.Errorf("the Service %s leads to %s, which is no port of its pods", s.Name, target.String())
					}
				}
			}
			for _, p := range of[*networkingv1.NetworkPolicy](r) {
				for _, rule := range p.Spec.Ingress {
					for _, port := range rule.Ports {
						if port.Port == nil || port.Protocol == nil || !listens(*port.Port, *port.Protocol, containers[p.Name]...) {
							t.Errorf("the NetworkPolicy %s lets in %s, which is no port of its pods", p.Name, port.String())
						}
					}
				}
			}
			for _, m := range of[*monitoringv1.ServiceMonitor](r) {
				for _, e := range m.Spec.Endpoints {
					s := services[m.Name]
					if s == nil || !slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == e.Port }) {
						t.Errorf("the ServiceMonitor %s asks port %q, which its Service has not", m.Name, e.Port)
					}
				}
			}
		})
	}
}

// TestTokenOfDemo: the simulated API asks for the token that packship has.
func TestTokenOfDemo(t *testing.T) {
	r := render(t, "demo")
	for _, w := range r.workloads(t) {
		for _, c := range w.containers() {
			if i := slices.Index(c.Args, "--token"); i >= 0 {
				if secret := of[*corev1.Secret](r)[0].Data["upstream-token"]; string(secret) != c.Args[i+1] {
					t.Errorf("%s asks for the token %q, and packship has %q", w.name, c.Args[i+1], secret)
				}
				return
			}
		}
	}
	t.Error("nothing asks for a token")
}

// TestNetworkPolicyPage holds the ports and the namespace of the policy to what
// docs/kubernetes.md says of it.
func TestNetworkPolicyPage(t *testing.T) {
	_, page, _ := strings.Cut(text(t, filepath.Join(root, "docs/kubernetes.md")), "**The network policy** ")
	page, _, _ = strings.Cut(page, "\n6. ")
	told := map[string]bool{"TCP 53": true, "UDP 53": true} // DNS
	for _, port := range regexp.MustCompile(`\b\d+\b`).FindAllString(page, -1) {
		told["TCP "+port] = true
	}
	open := map[string]bool{}
	for _, p := range of[*networkingv1.NetworkPolicy](render(t, "production")) {
		var ports []networkingv1.NetworkPolicyPort
		for _, rule := range p.Spec.Ingress {
			ports = append(ports, rule.Ports...)
			for _, from := range rule.From {
				if namespace := from.NamespaceSelector.MatchLabels[corev1.LabelMetadataName]; !strings.Contains(page, "`"+namespace+"`") {
					t.Errorf("the policy lets in the namespace %q, of which docs/kubernetes.md does not speak", namespace)
				}
			}
		}
		for _, rule := range p.Spec.Egress {
			ports = append(ports, rule.Ports...)
		}
		for _, port := range ports {
			open[string(*port.Protocol)+" "+port.Port.String()] = true
		}
	}
	if !maps.Equal(told, open) {
		t.Errorf("the policy has %v, and docs/kubernetes.md tells of %v", slices.Sorted(maps.Keys(open)), slices.Sorted(maps.Keys(told)))
	}
}

// TestImages: an image is the one of the kustomization, which the page says how to
// build, or it has a version.
func TestImages(t *testing.T) {
	for _, name := range overlays(t) {
		t.Run(name, func(t *testing.T) {
			r := render(t, name)
			used := map[string]bool{}
			for _, w := range r.workloads(t) {
				for _, c := range w.containers() {
					used[c.Image] = true
				}
			}
			for _, i := range r.kustomization.Images {
				image := i.NewName + ":" + i.NewTag
				if !used[image] {
					t.Errorf("nothing runs %s, which the kustomization names", image)
				}
				if !strings.Contains(text(t, filepath.Join(root, "docs/kubernetes.md")), "-t "+image+" ") {
					t.Errorf("docs/kubernetes.md does not say how to build %s", image)
				}
				delete(used, image)
			}
			for image := range used {
				if _, tag, _ := strings.Cut(image, ":"); strings.Trim(tag, "0123456789.") != "" || tag == "" {
					t.Errorf("%s is neither an image of the kustomization nor one with a version", image)
				}
			}
		})
	}
}

func TestNamespaces(t *testing.T) {
	for _, name := range overlays(t) {
		t.Run(name, func(t *testing.T) {
			r := render(t, name)
			want := r.kustomization.Namespace
			if !strings.Contains(text(t, filepath.Join(root, "docs/kubernetes.md")), "kubectl -n "+want+" ") {
				t.Errorf("docs/kubernetes.md does not speak of namespace %q", want)
			}
			if !r.has(need{"Namespace", want, ""}) {
				t.Errorf("there is no namespace %q", want)
			}
			for _, o := range r.objects {
				if space, ok := o.(*corev1.Namespace); ok && space.Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
					t.Errorf("the namespace %s lets any pod in: %v", space.Name, space.Labels)
				}
				if _, whole := o.(*corev1.Namespace); !whole && o.GetNamespace() != want {
					t.Errorf("%T %s is in namespace %q, want %q", o, o.GetName(), o.GetNamespace(), want)
				}
			}
		})
	}
}

// TestNamesAreLegal holds names and labels to what the API accepts, which the
// types do not say.
func TestNamesAreLegal(t *testing.T) {
	for _, name := range overlays(t) {
		t.Run(name, func(t *testing.T) {
			r := render(t, name)
			legal := func(name string, wrong []string) {
				t.Helper()
				if len(wrong) > 0 {
					t.Errorf("%q: %s", name, strings.Join(wrong, "; "))
				}
			}
			for _, o := range r.objects {
				legal(o.GetName(), validation.IsDNS1123Label(o.GetName()))
				for key, value := range o.GetLabels() {
					legal(key, validation.IsQualifiedName(key))
					legal(value, validation.IsValidLabelValue(value))
				}
			}
			for _, s := range of[*corev1.Service](r) {
				if ip := s.Spec.ClusterIP; ip != "" && ip != corev1.ClusterIPNone {
					t.Errorf("the Service %s asks for the address %s", s.Name, ip)
				}
			}
			for _, w := range r.workloads(t) {
				for key, value := range w.pod.Labels {
					legal(key, validation.IsQualifiedName(key))
					legal(value, validation.IsValidLabelValue(value))
				}
				for _, c := range w.containers() {
					legal(c.Name, validation.IsDNS1123Label(c.Name))
					for _, p := range c.Ports {
						legal(p.Name, validation.IsValidPortName(p.Name))
					}
				}
			}
		})
	}
}
