package deploycheck

import (
	"os/exec"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"packship/cmd/internal/app"
	"packship/schema"
)

// samples are the programs that docs/producers.md shows.
var samples = []string{"docs/producers/go/main.go", "docs/producers/python/produce.py", "docs/producers/java/Produce.java"}

// TestSamplesAreShown keeps the programs in the page as they are in their files.
func TestSamplesAreShown(t *testing.T) {
	const page = "docs/producers.md"
	text := read(t, page)
	for _, file := range samples {
		name := strings.TrimPrefix(file, "docs/")
		language := strings.Split(name, "/")[1]
		shown := regexp.MustCompile("(?sm)(<!-- " + regexp.QuoteMeta(name) + " -->\n```" + language + "\n).*?^(```\n)")
		if !shown.MatchString(text) {
			t.Fatalf("%s does not show %s", page, name)
		}
		text = shown.ReplaceAllStringFunc(text, func(block string) string {
			m := shown.FindStringSubmatch(block)
			return m[1] + read(t, file) + m[2]
		})
	}
	keep(t, page, text)
}

// TestSamplesPack runs the programs in Go and, where its library is installed, in
// Python. What they produce must be packed events, each in the partition that its
// key belongs to.
func TestSamplesPack(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	s := app.Defaults()
	s.KafkaBrokers, s.UpstreamToken = cluster.ListenAddrs(), "token"
	k := app.NewKafka(&s, nil, s.Topics()...)
	t.Cleanup(k.Close)
	if err := k.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	const partitions = 8
	if _, err := k.CreateTopics(t.Context(), partitions, 1); err != nil {
		t.Fatal(err)
	}
	validate, err := s.Validator()
	if err != nil {
		t.Fatal(err)
	}
	produced := 0
	for language, command := range map[string]string{"go": "go run .", "python": "python3 produce.py"} {
		t.Run(language, func(t *testing.T) {
			if language == "python" && exec.CommandContext(t.Context(), "python3", "-c", "import confluent_kafka").Run() != nil {
				t.Skip("confluent-kafka is not installed")
			}
			args := append(strings.Fields(command), s.KafkaBrokers[0], s.TopicPacked)
			cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
			cmd.Dir = path.Join(root, "docs/producers", language)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			produced++
		})
	}
	murmur2 := kafka.Murmur2Balancer{}
	found := 0
	err = k.Scan(t.Context(), s.TopicPacked, func(r *schema.Record) error {
		found++
		p, err := schema.DecodePacked(r)
		if err != nil {
			t.Errorf("%s: %v", r.Value, err)
			return nil
		}
		if broken := validate(p); len(broken) > 0 {
			t.Errorf("%s: %v", r.Value, broken)
		}
		if want := murmur2.Balance(kafka.Message{Key: r.Key}, 0, 1, 2, 3, 4, 5, 6, 7); string(r.Key) != p.TID || r.Partition != want {
			t.Errorf("%s has key %s and is in partition %d, want %d", r.Value, r.Key, r.Partition, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found != produced {
		t.Errorf("%d events found, want %d", found, produced)
	}
}
