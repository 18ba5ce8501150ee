package manifests

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
)

// compose loads deploy/compose.yaml as docker compose does: against the schema,
// which has no other fields, and with every service and volume that is named in it.
func compose(t *testing.T) *types.Project {
	t.Helper()
	details := types.ConfigDetails{
		WorkingDir:  filepath.Join(root, "deploy"),
		ConfigFiles: types.ToConfigFiles([]string{filepath.Join(root, "deploy/compose.yaml")}),
	}
	project, err := loader.LoadWithContext(t.Context(), details, loader.WithProfiles([]string{"*"}))
	if err != nil {
		t.Fatal(err)
	}
	if len(project.Services) == 0 {
		t.Fatal("there are no services")
	}
	return project
}

func TestCompose(t *testing.T) {
	for name, s := range compose(t).Services {
		if s.Image == "" {
			t.Errorf("%s has no image", name)
		}
		if !slices.Contains([]string{"", types.RestartPolicyUnlessStopped}, s.Restart) {
			t.Errorf("%s starts again %q", name, s.Restart)
		}
		if s.Build != nil {
			dockerfile := text(t, filepath.Join(s.Build.Context, s.Build.Dockerfile))
			for arg := range s.Build.Args {
				if !regexp.MustCompile(`(?m)^ARG ` + arg + `\b`).MatchString(dockerfile) {
					t.Errorf("%s is built with %s, of which %s knows nothing", name, arg, s.Build.Dockerfile)
				}
			}
		}
		var mounts []string
		for _, v := range s.Volumes {
			mounts = append(mounts, v.Target)
			if v.Type != types.VolumeTypeBind {
				continue
			}
			if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		given := slices.Clone([]string(s.Command))
		for _, value := range s.Environment {
			given = append(given, *value)
		}
		for _, value := range given {
			if file := value[strings.LastIndex(value, "=")+1:]; strings.HasPrefix(file, "/") && !mounted(file, mounts) {
				t.Errorf("%s is told of %s, which is not mounted", name, file)
			}
		}
	}
}

// mounted reports whether a file is one of the mounts, or below one.
func mounted(file string, mounts []string) bool {
	return slices.ContainsFunc(mounts, func(m string) bool { return file == m || strings.HasPrefix(file, m+"/") })
}

// TestComposePorts: the head of the file lists every port that is open on the
// machine.
func TestComposePorts(t *testing.T) {
	head, _, _ := strings.Cut(text(t, filepath.Join(root, "deploy/compose.yaml")), "\nname:")
	var told, open []string
	for _, m := range regexp.MustCompile(`localhost:(\d+)`).FindAllStringSubmatch(head, -1) {
		told = append(told, m[1])
	}
	for _, s := range compose(t).Services {
		for _, p := range s.Ports {
			open = append(open, p.Published)
		}
	}
	slices.Sort(told)
	slices.Sort(open)
	if !slices.Equal(told, open) {
		t.Errorf("open are %v, and the head of the file tells of %v", open, told)
	}
}

// text returns what a file holds.
func text(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
