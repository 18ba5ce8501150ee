package deploycheck

import (
	"path"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// The fields of the manifests, no more than are in use. The names are those of
// the Kubernetes API.

type meta struct {
	Name   string            `yaml:"name"`
	Labels map[string]string `yaml:"labels"`
}

type selector struct {
	MatchLabels map[string]string `yaml:"matchLabels"`
}

type kustomization struct {
	APIVersion string         `yaml:"apiVersion"`
	Kind       string         `yaml:"kind"`
	Namespace  string         `yaml:"namespace"`
	Resources  []string       `yaml:"resources"`
	Components []string       `yaml:"components"`
	ConfigMaps []mapGenerator `yaml:"configMapGenerator"`
	Secrets    []mapGenerator `yaml:"secretGenerator"`
	Labels     []struct {
		Pairs map[string]string `yaml:"pairs"`
	} `yaml:"labels"`
	Images []struct {
		Name    string `yaml:"name"`
		NewName string `yaml:"newName"`
		NewTag  string `yaml:"newTag"`
	} `yaml:"images"`
	Patches []struct {
		Target struct {
			Kind string `yaml:"kind"`
			Name string `yaml:"name"`
		} `yaml:"target"`
		Patch string `yaml:"patch"`
	} `yaml:"patches"`
}

type mapGenerator struct {
	Name     string   `yaml:"name"`
	Behavior string   `yaml:"behavior"`
	Envs     []string `yaml:"envs"`
	Literals []string `yaml:"literals"`
}

type deployment struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Metadata   meta   `yaml:"metadata"`
	Spec       struct {
		Replicas                int `yaml:"replicas"`
		RevisionHistoryLimit    int `yaml:"revisionHistoryLimit"`
		ProgressDeadlineSeconds int `yaml:"progressDeadlineSeconds"`
		Strategy                struct {
			Type          string `yaml:"type"`
			RollingUpdate struct {
				MaxSurge       int `yaml:"maxSurge"`
				MaxUnavailable int `yaml:"maxUnavailable"`
			} `yaml:"rollingUpdate"`
		} `yaml:"strategy"`
		Selector selector    `yaml:"selector"`
		Template podTemplate `yaml:"template"`
	} `yaml:"spec"`
}

type job struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Metadata   meta   `yaml:"metadata"`
	Spec       struct {
		BackoffLimit            int         `yaml:"backoffLimit"`
		ActiveDeadlineSeconds   int         `yaml:"activeDeadlineSeconds"`
		TTLSecondsAfterFinished int         `yaml:"ttlSecondsAfterFinished"`
		Template                podTemplate `yaml:"template"`
	} `yaml:"spec"`
}

type podTemplate struct {
	Metadata meta    `yaml:"metadata"`
	Spec     podSpec `yaml:"spec"`
}

type podSpec struct {
	ServiceAccountName            string `yaml:"serviceAccountName"`
	AutomountServiceAccountToken  *bool  `yaml:"automountServiceAccountToken"`
	EnableServiceLinks            *bool  `yaml:"enableServiceLinks"`
	TerminationGracePeriodSeconds int    `yaml:"terminationGracePeriodSeconds"`
	RestartPolicy                 string `yaml:"restartPolicy"`
	SecurityContext               struct {
		RunAsNonRoot   bool `yaml:"runAsNonRoot"`
		RunAsUser      int  `yaml:"runAsUser"`
		RunAsGroup     int  `yaml:"runAsGroup"`
		FSGroup        int  `yaml:"fsGroup"`
		SeccompProfile struct {
			Type string `yaml:"type"`
		} `yaml:"seccompProfile"`
	} `yaml:"securityContext"`
	TopologySpreadConstraints []struct {
		MaxSkew           int      `yaml:"maxSkew"`
		TopologyKey       string   `yaml:"topologyKey"`
		WhenUnsatisfiable string   `yaml:"whenUnsatisfiable"`
		LabelSelector     selector `yaml:"labelSelector"`
	} `yaml:"topologySpreadConstraints"`
	Containers []container `yaml:"containers"`
	Volumes    []volume    `yaml:"volumes"`
}

type container struct {
	Name            string   `yaml:"name"`
	Image           string   `yaml:"image"`
	ImagePullPolicy string   `yaml:"imagePullPolicy"`
	Args            []string `yaml:"args"`
	EnvFrom         []struct {
		ConfigMapRef struct {
			Name string `yaml:"name"`
		} `yaml:"configMapRef"`
	} `yaml:"envFrom"`
	Env []struct {
		Name  string `yaml:"name"`
		Value string `yaml:"value"`
	} `yaml:"env"`
	Ports []struct {
		Name          string `yaml:"name"`
		ContainerPort int    `yaml:"containerPort"`
	} `yaml:"ports"`
	StartupProbe   *probe `yaml:"startupProbe"`
	LivenessProbe  *probe `yaml:"livenessProbe"`
	ReadinessProbe *probe `yaml:"readinessProbe"`
	Resources      struct {
		Requests map[string]string `yaml:"requests"`
		Limits   map[string]string `yaml:"limits"`
	} `yaml:"resources"`
	SecurityContext struct {
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct {
			Drop []string `yaml:"drop"`
		} `yaml:"capabilities"`
	} `yaml:"securityContext"`
	VolumeMounts []struct {
		Name      string `yaml:"name"`
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	} `yaml:"volumeMounts"`
}

type probe struct {
	HTTPGet struct {
		Path string `yaml:"path"`
		Port string `yaml:"port"`
	} `yaml:"httpGet"`
	TCPSocket struct {
		Port string `yaml:"port"`
	} `yaml:"tcpSocket"`
	PeriodSeconds    int `yaml:"periodSeconds"`
	TimeoutSeconds   int `yaml:"timeoutSeconds"`
	FailureThreshold int `yaml:"failureThreshold"`
}

type volume struct {
	Name   string `yaml:"name"`
	Secret *struct {
		SecretName  string `yaml:"secretName"`
		DefaultMode int    `yaml:"defaultMode"`
	} `yaml:"secret"`
	EmptyDir *struct{} `yaml:"emptyDir"`
}

type service struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Metadata   meta   `yaml:"metadata"`
	Spec       struct {
		ClusterIP string            `yaml:"clusterIP"`
		Selector  map[string]string `yaml:"selector"`
		Ports     []struct {
			Name       string `yaml:"name"`
			Port       int    `yaml:"port"`
			TargetPort string `yaml:"targetPort"`
		} `yaml:"ports"`
	} `yaml:"spec"`
}

type disruptionBudget struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Metadata   meta   `yaml:"metadata"`
	Spec       struct {
		MaxUnavailable             int      `yaml:"maxUnavailable"`
		UnhealthyPodEvictionPolicy string   `yaml:"unhealthyPodEvictionPolicy"`
		Selector                   selector `yaml:"selector"`
	} `yaml:"spec"`
}

type networkPolicy struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Metadata   meta   `yaml:"metadata"`
	Spec       struct {
		PodSelector selector      `yaml:"podSelector"`
		PolicyTypes []string      `yaml:"policyTypes"`
		Ingress     []networkRule `yaml:"ingress"`
		Egress      []networkRule `yaml:"egress"`
	} `yaml:"spec"`
}

type networkRule struct {
	From []struct {
		NamespaceSelector selector `yaml:"namespaceSelector"`
	} `yaml:"from"`
	Ports []struct {
		Protocol string `yaml:"protocol"`
		Port     int    `yaml:"port"`
	} `yaml:"ports"`
}

// allows reports whether one of the rules lets a TCP port through.
func allows(rules []networkRule, port int) bool {
	for _, rule := range rules {
		for _, p := range rule.Ports {
			if p.Protocol == "TCP" && p.Port == port {
				return true
			}
		}
	}
	return false
}

type serviceMonitor struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Metadata   meta   `yaml:"metadata"`
	Spec       struct {
		Selector  selector `yaml:"selector"`
		Endpoints []struct {
			Port     string `yaml:"port"`
			Path     string `yaml:"path"`
			Interval string `yaml:"interval"`
		} `yaml:"endpoints"`
	} `yaml:"spec"`
}

type prometheusRule struct {
	APIVersion string   `yaml:"apiVersion"`
	Kind       string   `yaml:"kind"`
	Metadata   meta     `yaml:"metadata"`
	Spec       ruleFile `yaml:"spec"`
}

// simple is a kind of which nothing is checked but its form.
type simple struct {
	APIVersion                   string `yaml:"apiVersion"`
	Kind                         string `yaml:"kind"`
	Metadata                     meta   `yaml:"metadata"`
	AutomountServiceAccountToken *bool  `yaml:"automountServiceAccountToken"`
}

// objects are the manifests that an overlay is made of, before they are rendered.
type objects struct {
	deployments []deployment
	jobs        []job
	services    []service
	budgets     []disruptionBudget
	policies    []networkPolicy
	monitors    []serviceMonitor
	simples     []simple
}

// add decodes a manifest and adds it.
func (o *objects) add(t *testing.T, name string, node *yaml.Node) {
	t.Helper()
	var head struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string `yaml:"kind"`
	}
	if err := node.Decode(&head); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	name += " (" + head.Kind + ")"
	switch head.APIVersion + " " + head.Kind {
	case "apps/v1 Deployment":
		o.deployments = appended(t, name, node, o.deployments)
	case "batch/v1 Job":
		o.jobs = appended(t, name, node, o.jobs)
	case "v1 Service":
		o.services = appended(t, name, node, o.services)
	case "policy/v1 PodDisruptionBudget":
		o.budgets = appended(t, name, node, o.budgets)
	case "networking.k8s.io/v1 NetworkPolicy":
		o.policies = appended(t, name, node, o.policies)
	case "monitoring.coreos.com/v1 ServiceMonitor":
		o.monitors = appended(t, name, node, o.monitors)
	case "monitoring.coreos.com/v1 PrometheusRule":
		strict(t, name, node, new(prometheusRule))
	case "v1 Namespace", "v1 ServiceAccount":
		o.simples = appended(t, name, node, o.simples)
	default:
		t.Fatalf("%s: %s is not a kind that this test knows", name, head.APIVersion)
	}
}

func appended[T any](t *testing.T, name string, node *yaml.Node, all []T) []T {
	t.Helper()
	var v T
	strict(t, name, node, &v)
	return append(all, v)
}

// collect reads the manifests that a kustomization names, and those of the
// folders that it names.
func (o *objects) collect(t *testing.T, folder string) {
	t.Helper()
	k := one[kustomization](t, path.Join(folder, "kustomization.yaml"))
	for _, entry := range append(k.Resources, k.Components...) {
		name := path.Join(folder, entry)
		if !strings.HasSuffix(name, ".yaml") {
			o.collect(t, name)
			continue
		}
		for _, node := range documents(t, name, read(t, name)) {
			o.add(t, name, node)
		}
	}
}

// pods returns the templates of all pods, by the name of what makes them.
func (o *objects) pods() map[string]podTemplate {
	pods := map[string]podTemplate{}
	for _, d := range o.deployments {
		pods[d.Metadata.Name] = d.Spec.Template
	}
	for _, j := range o.jobs {
		pods[j.Metadata.Name] = j.Spec.Template
	}
	return pods
}

// named returns the one of that name.
func named[T any](t *testing.T, all []T, name func(T) string, want string) T {
	t.Helper()
	for _, v := range all {
		if name(v) == want {
			return v
		}
	}
	t.Fatalf("there is no %T of the name %s", *new(T), want)
	panic("unreachable")
}
