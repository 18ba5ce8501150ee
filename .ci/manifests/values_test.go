package manifests

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
)

// words are the values that the API takes where a Go type can only say that it is
// a string. Of types that have many, those in use here.
var words = map[reflect.Type][]string{}

// word says which values a type has.
func word[T ~string](values ...T) {
	for _, v := range values {
		words[reflect.TypeFor[T]()] = append(words[reflect.TypeFor[T]()], string(v))
	}
}

func init() {
	word(appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType)
	word(corev1.DoNotSchedule, corev1.ScheduleAnyway)
	word(corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
	word(corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	word(corev1.ResourceCPU, corev1.ResourceMemory)
	word(corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	word(corev1.SeccompProfileTypeRuntimeDefault)
	word(corev1.SecretTypeOpaque)
	word(corev1.Capability("ALL"))
	word(networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress)
	word(policyv1.AlwaysAllow, policyv1.IfHealthyBudget)
}

// TestValues finds words that the API does not take.
func TestValues(t *testing.T) {
	for _, name := range overlays(t) {
		t.Run(name, func(t *testing.T) {
			for _, o := range render(t, name).objects {
				eachWord(reflect.ValueOf(o), func(of reflect.Type, word string) {
					if !slices.Contains(words[of], word) {
						t.Errorf("%T %s: %q is no %s, of which this test knows %q", o, o.GetName(), word, of, words[of])
					}
				})
			}
		})
	}
}

// eachWord visits everything in v that is set and whose type is a string with a
// name, and comes from the Kubernetes API.
func eachWord(v reflect.Value, visit func(of reflect.Type, word string)) {
	switch v.Kind() {
	case reflect.String:
		if strings.HasPrefix(v.Type().PkgPath(), "k8s.io/api/") && v.String() != "" {
			visit(v.Type(), v.String())
		}
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			eachWord(v.Elem(), visit)
		}
	case reflect.Struct:
		for _, field := range v.Fields() {
			eachWord(field, visit)
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			eachWord(v.Index(i), visit)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			eachWord(key, visit)
			eachWord(v.MapIndex(key), visit)
		}
	default:
	}
}
