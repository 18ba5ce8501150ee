package operate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"packship/cmd/internal/life"
	"packship/producer"
	"packship/schema"
)

// Letter is a dead letter: a record that is no packed event, with what packship
// has noted about it.
type Letter struct {
	ID     string    `json:"id"`
	Time   time.Time `json:"time"`
	Reason string    `json:"reason"`
	Detail string    `json:"detail"`
	// Source is where the record came from, as topic/partition/offset.
	Source string `json:"source"`
	Key    string `json:"key"`
	Bytes  int    `json:"bytes"` // of the value
	Done   bool   `json:"done"`

	Record *schema.Record `json:"-"`
}

// The headers that packship adds to a dead letter begin with this.
const noted = "packship_"

// letter reads what was noted about a dead letter. It forgets the value.
func letter(rec *schema.Record) Letter {
	header := func(name string) string {
		value, _ := rec.Header(noted + name)
		return value
	}
	l := Letter{
		ID: letterID(rec), Time: rec.Time, Reason: header("reason"), Detail: header("detail"),
		Key: string(rec.Key), Bytes: len(rec.Value),
	}
	if topic := header("topic"); topic != "" {
		l.Source = topic + "/" + header("partition") + "/" + header("offset")
	}
	if at, err := time.Parse(time.RFC3339, header("at")); err == nil {
		l.Time = at
	}
	return l
}

func letterID(rec *schema.Record) string { return fmt.Sprintf("%d/%d", rec.Partition, rec.Offset) }

// LetterFilter says which dead letters are meant.
type LetterFilter struct {
	Reasons []string
	// All also means those that are marked as done.
	All bool
}

// LetterCount counts dead letters by reason.
type LetterCount struct {
	Reason string `json:"reason"`
	Count  int    `json:"count"`
}

// DeadLetters lists dead letters in the order of their times.
func (o *Operator) DeadLetters(ctx context.Context, f LetterFilter) ([]Letter, error) {
	done, _, err := o.doneLetters(ctx)
	if err != nil {
		return nil, err
	}
	letters, known := []Letter{}, map[string]bool{}
	err = o.readAll(ctx, o.settings.TopicDLQ, func(rec *schema.Record) error {
		l := letter(rec)
		l.Done = done[rec.Partition].done(rec.Offset)
		known[l.Reason] = true
		if (f.All || !l.Done) && (len(f.Reasons) == 0 || slices.Contains(f.Reasons, l.Reason)) {
			letters = append(letters, l)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, reason := range f.Reasons {
		if !known[reason] && !slices.Contains(schema.NotPackedReasons, reason) {
			return nil, &FilterError{fmt.Sprintf("dlq: there is no reason %q, and no dead letter has it; there are %s", reason, strings.Join(schema.NotPackedReasons, ", "))}
		}
	}
	slices.SortStableFunc(letters, func(a, b Letter) int { return a.Time.Compare(b.Time) })
	return letters, nil
}

// CountLetters counts dead letters by reason, the most frequent first.
func CountLetters(letters []Letter) []LetterCount {
	n := map[string]int{}
	for _, l := range letters {
		n[l.Reason]++
	}
	counts := []LetterCount{}
	for _, reason := range sortedKeys(n) {
		counts = append(counts, LetterCount{reason, n[reason]})
	}
	slices.SortStableFunc(counts, func(a, b LetterCount) int { return b.Count - a.Count })
	return counts
}

// ParseLetterID reads the id of a dead letter, which is partition/offset.
func ParseLetterID(id string) (partition int, offset int64, err error) {
	left, right, ok := strings.Cut(id, "/")
	p, errP := strconv.ParseUint(left, 10, 31)
	at, errO := strconv.ParseUint(right, 10, 63)
	if !ok || errP != nil || errO != nil {
		return 0, 0, fmt.Errorf("%q is not the id of a dead letter, which is partition/offset as `packship dlq list` shows it", id)
	}
	return int(p), int64(at), nil
}

// DeadLetter returns one dead letter with its record.
func (o *Operator) DeadLetter(ctx context.Context, id string) (Letter, error) {
	partition, offset, err := ParseLetterID(id)
	if err != nil {
		return Letter{}, err
	}
	rec, err := o.recordAt(ctx, o.settings.TopicDLQ, partition, offset)
	if err != nil {
		return Letter{}, err
	}
	if rec == nil {
		return Letter{}, o.noLetter(ctx, partition, offset)
	}
	l := letter(rec)
	l.Record = rec
	return l, nil
}

// noLetter says why there is no dead letter at a place.
func (o *Operator) noLetter(ctx context.Context, partition int, offset int64) error {
	ranges, err := o.kafka.Ranges(ctx, o.settings.TopicDLQ)
	if err != nil {
		return err
	}
	for _, r := range ranges {
		if r.Partition == partition && offset < r.From {
			return fmt.Errorf("dlq: dead letter %d/%d is deleted: %s keeps nothing before %d/%d; if its packed record is still there, `packship replay` finds it again",
				partition, offset, o.settings.TopicDLQ, partition, r.From)
		}
	}
	return fmt.Errorf("dlq: there is no dead letter %d/%d in %s; `packship dlq list` shows those that there are", partition, offset, o.settings.TopicDLQ)
}

// Resend sends a dead letter to the packed topic, with its own key and headers
// and, unless value is nil, another value. The error that comes back with no
// other says why the record is no packed event even now, so that it will be a
// dead letter again.
func (o *Operator) Resend(ctx context.Context, l Letter, value []byte) (still *schema.NotPackedError, err error) {
	rec := &schema.Record{Key: l.Record.Key, Value: l.Record.Value}
	if value != nil {
		rec.Value = value
	}
	for _, h := range l.Record.Headers {
		if !strings.HasPrefix(h.Key, noted) && h.Key != life.ResentMark {
			rec.Headers = append(rec.Headers, h)
		}
	}
	rec.Headers = append(rec.Headers, schema.Header{Key: life.ResentMark, Value: []byte(o.settings.TopicDLQ + "/" + l.ID)})
	err = o.producing(ctx, func(ctx context.Context, out *producer.Producer) error { return o.send(ctx, out, rec) })
	if err != nil {
		return nil, fmt.Errorf("dlq: %s was perhaps not sent: %w", l.ID, err)
	}
	_, why := schema.DecodePacked(rec)
	still, _ = errors.AsType[*schema.NotPackedError](why)
	return still, nil
}

// Shown is a dead letter as a program reads it: with its headers and value.
type Shown struct {
	Letter
	Headers []ShownHeader `json:"headers"`
	// Value is the value if it is UTF-8, ValueBase64 what it is otherwise.
	Value       *string `json:"value,omitempty"`
	ValueBase64 []byte  `json:"value_base64,omitempty"`
}

// ShownHeader is a header as text.
type ShownHeader struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Show returns a dead letter for a program.
func Show(l Letter) Shown {
	s := Shown{Letter: l, Headers: []ShownHeader{}}
	for _, h := range l.Record.Headers {
		s.Headers = append(s.Headers, ShownHeader{h.Key, strings.ToValidUTF8(string(h.Value), "\ufffd")})
	}
	switch value := l.Record.Value; {
	case value == nil:
	case utf8.Valid(value):
		text := string(value)
		s.Value = &text
	default:
		s.ValueBase64 = value
	}
	return s
}
