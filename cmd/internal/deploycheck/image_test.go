package deploycheck

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// imageBudget is how large the image may be.
const imageBudget = 25 << 20

// TestContainerImage runs the build command of the Dockerfile, and, where there
// is an engine, makes an image of the result as its last stage says. The image
// needs no network: then no registry is asked for the image that holds Go.
func TestContainerImage(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	dockerfile := read(t, "deploy/Dockerfile")
	stages := strings.SplitAfter(dockerfile, "\nFROM scratch\n")
	command := regexp.MustCompile(`(?s)CGO_ENABLED=0.* go build .*\./cmd/packship\n`).FindString(strings.ReplaceAll(stages[0], "\\\n", " "))
	if len(stages) != 2 || command == "" {
		t.Fatal("the Dockerfile has no build command, or not two stages")
	}
	dir := t.TempDir()
	command = strings.Replace(command, "-o /out/packship", "-o "+filepath.Join(dir, "packship"), 1)
	build := exec.CommandContext(t.Context(), "sh", "-ec", command)
	build.Dir = root
	build.Env = append(os.Environ(), "VERSION=v9.8.7", "REVISION=0123abc", "TARGETOS=linux", "TARGETARCH=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	info, err := os.Stat(filepath.Join(dir, "packship"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > imageBudget-256<<10 { // the rest is for the certificates
		t.Errorf("the binary has %d bytes, too many for an image of %d", info.Size(), imageBudget)
	}
	if out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "packship"), "version").CombinedOutput(); err != nil || !strings.Contains(string(out), "v9.8.7") || !strings.Contains(string(out), "0123abc") {
		t.Errorf("packship version says %s (%v), want the version and the revision that were stamped", out, err)
	}

	if os.Getenv("PACKSHIP_TEST_IMAGE") == "" {
		t.Skip("the binary is fine; with PACKSHIP_TEST_IMAGE=1 and a container engine an image is made of it and run")
	}
	ask, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := exec.CommandContext(ask, "docker", "info").Run(); err != nil {
		t.Fatalf("no container engine answers: %v", err)
	}
	certificates, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		t.Skipf("this machine has no authorities where the image has them: %v", err)
	}
	for name, content := range map[string][]byte{
		"ca-certificates.crt": certificates,
		"Dockerfile":          []byte("FROM scratch\n" + regexp.MustCompile(`--from=build \S*/`).ReplaceAllString(stages[1], "")),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	docker := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "docker", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	const tag = "packship-test:image"
	docker("build", "--quiet", "--tag", tag, dir)
	t.Cleanup(func() { _ = exec.Command("docker", "image", "rm", "--force", tag).Run() })
	size := number(t, strings.TrimSpace(docker("image", "inspect", "--format", "{{.Size}}", tag)))
	if t.Logf("the image has %.1f MB", float64(size)/(1<<20)); size > imageBudget {
		t.Errorf("the image has %d bytes, more than %d", size, imageBudget)
	}
	run := func(args ...string) string {
		t.Helper()
		return docker(append([]string{"run", "--rm", "--read-only", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", tag}, args...)...)
	}
	if user := strings.TrimSpace(docker("image", "inspect", "--format", "{{.Config.User}}", tag)); user == "" || strings.HasPrefix(user, "0") || strings.HasPrefix(user, "root") {
		t.Errorf("the image runs as %q", user)
	}
	if out := run("version"); !strings.Contains(out, "v9.8.7") {
		t.Errorf("packship version says %s", out)
	}
	if out := run("demo"); !strings.Contains(out, "shipped") {
		t.Errorf("packship demo says %s", out)
	}
}
