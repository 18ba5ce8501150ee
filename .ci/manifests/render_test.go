package manifests

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// root is the repository, as seen from this package.
const root = "../.."

// An object is a document of an overlay, in its type of the API.
type object interface {
	metav1.Object
	runtime.Object
}

// A rendering is what would be applied of an overlay.
type rendering struct {
	kustomization types.Kustomization
	objects       []object
	read          map[string]bool // the files that it was made of
}

// kinds are those that the cluster knows: of Kubernetes, and of the Prometheus
// operator.
func kinds(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	err := (&runtime.SchemeBuilder{
		appsv1.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme,
		monitoringv1.AddToScheme,
	}).AddToScheme(scheme)
	if err != nil {
		t.Fatal(err)
	}
	return scheme
}

// overlays are what one applies.
func overlays(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(root, "deploy/k8s/overlays"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if len(names) == 0 {
		t.Fatal("there are no overlays")
	}
	return names
}

// render makes of an overlay what kubectl apply -k would send. It fails on a kind
// that the API does not have, and on a field that the kind does not have or that
// is there twice.
func render(t *testing.T, name string) rendering {
	t.Helper()
	var r rendering
	folder := filepath.Join(root, "deploy/k8s/overlays", name)
	text, err := os.ReadFile(filepath.Join(folder, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.kustomization.Unmarshal(text); err != nil {
		t.Fatal(err)
	}
	files := reader{filesys.MakeFsOnDisk(), map[string]bool{}}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, folder)
	if err != nil {
		t.Fatal(err)
	}
	r.read = files.read
	scheme := kinds(t)
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	for _, resource := range resources.Resources() {
		text, err := resource.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		decoded, _, err := strict.Decode(text, nil, nil)
		if err != nil {
			t.Fatalf("%s %s: %v", resource.GetKind(), resource.GetName(), err)
		}
		o, ok := decoded.(object)
		if !ok {
			t.Fatalf("%s %s: %T has no metadata", resource.GetKind(), resource.GetName(), decoded)
		}
		r.objects = append(r.objects, o)
	}
	return r
}

// A reader remembers the files that were read.
type reader struct {
	filesys.FileSystem
	read map[string]bool
}

func (r reader) ReadFile(name string) ([]byte, error) {
	full, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	r.read[full] = true
	return r.FileSystem.ReadFile(name)
}

// of returns the objects of one kind.
func of[T object](r rendering) []T {
	var all []T
	for _, o := range r.objects {
		if v, ok := o.(T); ok {
			all = append(all, v)
		}
	}
	return all
}

// TestEveryFileIsRendered finds files below deploy/k8s that are in no overlay, and
// so are looked at by none of these tests.
func TestEveryFileIsRendered(t *testing.T) {
	read := map[string]bool{}
	for _, name := range overlays(t) {
		maps.Copy(read, render(t, name).read)
	}
	folder, err := filepath.Abs(filepath.Join(root, "deploy/k8s"))
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(folder, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !read[name] {
			t.Errorf("no overlay has %s", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
