package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"packship/cmd/internal/app"
	"packship/schema"
)

// ReplayRange says which records are to be replayed.
type ReplayRange struct {
	From Point
	To   Point // none: to the end
	// Partitions are those of the packed topic that are meant, all if there are
	// none.
	Partitions []int
}

// Plan is what a replay would come to.
type Plan struct {
	Records int64 `json:"records"`
	// Shipped and Failed are records whose result is published again, or that
	// fail without a call.
	Shipped int64 `json:"shipped"`
	Failed  int64 `json:"failed"`
	// InDoubt are records of shipments that may be shipped, New those of which
	// nothing is known. Both are called for.
	InDoubt       int64 `json:"in_doubt"`
	New           int64 `json:"new"`
	BeyondHorizon int64 `json:"beyond_horizon"`
	DeadLetters   int64 `json:"dead_letters"`

	Calls int64 `json:"calls"`
	// Points is what the calls cost if each is charged one point, which is the
	// most that the API is known to take.
	Points int64 `json:"points"`
	// Seconds is how long the calls take at the rate of their accounts.
	Seconds float64 `json:"seconds"`

	// Skipped are the records of other deployments' shops.
	Skipped int64 `json:"skipped,omitempty"`
	// Moves are the partitions whose records were looked at.
	Moves []Move `json:"-"`
	// Damaged says why the ledger cannot be trusted to know every shipment, ""
	// if it can.
	Damaged string `json:"-"`
}

// Move is what a replay means for a partition of the packed topic.
type Move struct {
	Partition int
	// Now is where the group stands.
	Now int64
	// From and To are the records that are replayed.
	From, To int64
	First    int64 // of the records that are still there
	End      int64
	// Note says where From is not what was asked for, "" if it is.
	Note string
}

// Unfinished is how many records the group would pass over without handling
// them.
func (m Move) Unfinished() int64 { return max(0, m.From-m.Now) }

// PlanReplay tells what a replay would come to, and changes nothing.
func (o *Operator) PlanReplay(ctx context.Context, r ReplayRange) (*Plan, error) {
	orders, err := o.settings.Orders()
	if err != nil {
		return nil, err
	}
	moves, err := o.moves(ctx, r)
	if err != nil {
		return nil, err
	}
	memory, err := o.loadLedger(ctx)
	if err != nil {
		return nil, err
	}
	rehearsal := newRehearsal(o.settings, orders, memory)
	ranges := make([]app.Range, len(moves))
	for i, m := range moves {
		ranges[i] = app.Range{Partition: m.Partition, From: m.From, To: m.To}
	}
	if err := o.rehearse(ctx, rehearsal, ranges); err != nil {
		return nil, err
	}
	plan := rehearsal.plan()
	plan.Moves, plan.Damaged = moves, memory.Damaged()
	return plan, nil
}

// moves resolves the range.
func (o *Operator) moves(ctx context.Context, r ReplayRange) ([]Move, error) {
	positions, err := o.positions(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range r.Partitions {
		if !slices.ContainsFunc(positions, func(at position) bool { return at.Partition == p }) {
			return nil, &FilterError{fmt.Sprintf("replay: topic %s has no partition %d; it has 0 to %d", o.settings.TopicPacked, p, len(positions)-1)}
		}
	}
	from, err := o.resolve(ctx, r.From)
	if err != nil {
		return nil, err
	}
	to, err := o.resolve(ctx, r.To)
	if err != nil {
		return nil, err
	}
	var moves []Move
	for _, p := range positions {
		if len(r.Partitions) > 0 && !slices.Contains(r.Partitions, p.Partition) {
			continue
		}
		m := Move{Partition: p.Partition, Now: p.at, First: p.First, End: p.End, To: p.End}
		m.From = min(max(from(p), p.First), p.End)
		m.Note = r.From.note(p, from(p))
		if !r.To.IsZero() {
			m.To = min(max(to(p), m.From), p.End)
		}
		moves = append(moves, m)
	}
	return moves, nil
}

// note says why a replay cannot begin at the offset that the point is in a
// partition, "" if it can.
func (p Point) note(at position, offset int64) string {
	switch {
	case offset > at.End:
		return fmt.Sprintf("ends at %d, so that there is nothing at offset %d", at.End, offset)
	case !p.first && at.First > 0 && offset < at.End && offset <= at.First && (offset < at.First || !p.at.IsZero()):
		return fmt.Sprintf("begins at %d: what was before it is deleted", at.First)
	default:
		return ""
	}
}

// resolve returns the offset that a point names, by partition.
func (o *Operator) resolve(ctx context.Context, p Point) (func(position) int64, error) {
	switch {
	case p.first:
		return func(at position) int64 { return at.First }, nil
	case p.at.IsZero():
		return func(position) int64 { return p.offset }, nil
	case p.stood:
		return o.stoodAt(ctx, p.at)
	}
	offsets, err := o.kafka.OffsetsAt(ctx, o.settings.TopicPacked, p.at)
	if err != nil {
		return nil, err
	}
	return func(at position) int64 { return offsets[at.Partition] }, nil
}

// rehearse has the records of ranges handled without effect.
func (o *Operator) rehearse(ctx context.Context, r *rehearsal, ranges []app.Range) error {
	o.meter.Begin("planning", total(ranges))
	defer o.meter.End()
	return o.read(ctx, o.settings.TopicPacked, ranges, func(rec *schema.Record) error { return r.handle(ctx, rec) })
}

// plan returns what was rehearsed.
func (r *rehearsal) plan() *Plan {
	p := &Plan{
		Shipped: r.count[fateShipped], Failed: r.count[fateFailed], InDoubt: r.count[fateInDoubt], New: r.count[fateNew],
		BeyondHorizon: r.count[fateTooOld], DeadLetters: r.count[fateDeadLetter], Skipped: r.count[fateSkipped],
	}
	for _, n := range r.count {
		p.Records += n
	}
	var longest time.Duration
	for account, n := range r.calls {
		p.Calls += n
		longest = max(longest, r.orders.Duration(account, n))
	}
	p.Points = p.Calls * pointsPerCall
	p.Seconds = seconds(longest)
	return p
}

// pointsPerCall is what the API withholds for a call. Whether it does for one
// that fails is not documented, so that every call counts.
const pointsPerCall = 1

// seconds rounds up to a tenth.
func seconds(d time.Duration) float64 { return math.Ceil(d.Seconds()*10) / 10 }

// RefusalError says why something is not carried out, and what would have it carried
// out.
type RefusalError struct{ Text string }

func (e *RefusalError) Error() string { return e.Text }

func refuse(format string, args ...any) error { return &RefusalError{fmt.Sprintf(format, args...)} }

// Replay carries a plan out: it saves where the group stands to a file, and
// moves the group. The file is returned, also with an error if it was written.
// An empty name lets Replay choose one.
func (o *Operator) Replay(ctx context.Context, p *Plan, file string, force bool) (string, error) {
	if err := o.MayMove(ctx); err != nil {
		return "", err
	}
	offsets := map[int]int64{}
	for _, m := range p.Moves {
		switch {
		case m.Unfinished() > 0 && !force:
			return "", refuse("replay: the group stands at %d in partition %d, and beginning at %d would pass over %s without handling them; begin earlier, leave the partition out with --partition, or insist with --force",
				m.Now, m.Partition, m.From, plural(m.Unfinished(), "record", "records"))
		case m.To < min(m.Now, m.End) && !force:
			return "", refuse("replay: a group cannot be told where to end: in partition %d it would go on from %d and handle %s again that the plan leaves out; leave --to out, or insist with --force",
				m.Partition, m.To, plural(m.Now-m.To, "record", "records"))
		case m.From != m.Now:
			offsets[m.Partition] = m.From
		}
	}
	if len(offsets) == 0 {
		return "", refuse("replay: the group stands where the replay would begin, so that there is nothing to move")
	}
	saved, err := o.save(p, file)
	if err != nil {
		return "", err
	}
	return saved, o.move(ctx, offsets)
}

// MayMove returns an error while the group has members: Kafka moves none of a
// group that is at work.
func (o *Operator) MayMove(ctx context.Context) error {
	members, err := o.kafka.Members(ctx)
	if err != nil {
		return err
	}
	if len(members) > 0 {
		return refuse("group %s has %s (%s): stop all replicas first, for instance with `kubectl scale deployment packship --replicas=0`; one that was killed is forgotten after %s",
			o.settings.KafkaGroupID, plural(int64(len(members)), "member", "members"), strings.Join(members, ", "), o.settings.KafkaSessionTimeout)
	}
	return nil
}

// move moves the group and looks whether it has moved.
func (o *Operator) move(ctx context.Context, offsets map[int]int64) error {
	if err := o.kafka.Rewind(ctx, offsets); err != nil {
		return err
	}
	positions, err := o.positions(ctx)
	if err != nil {
		return err
	}
	for _, p := range positions {
		if want, ok := offsets[p.Partition]; ok && p.Committed != want {
			return fmt.Errorf("replay: partition %d stands at %d and not at %d: somebody else has moved the group", p.Partition, p.Committed, want)
		}
	}
	return nil
}

// undoFile is where a group stood before it was moved.
type undoFile struct {
	Group string    `json:"group"`
	Topic string    `json:"topic"`
	Saved time.Time `json:"saved"`
	// Offsets are those of the records that would have been handled next, by
	// partition.
	Offsets map[int]int64 `json:"offsets"`
	// Moved are those to which the group was moved.
	Moved map[int]int64 `json:"moved"`
}

// back returns where an undo moves the group in a partition where it stands at
// an offset now. A group that was moved back may have come further since; moving
// it to where it stood would then be another replay. One that was moved forward
// has passed over records that nobody has handled, however far it has come.
func (u *undoFile) back(partition int, now int64) (before int64, ok bool) {
	before, ok = u.Offsets[partition]
	if moved, known := u.Moved[partition]; known && moved > before {
		return before, ok && before < now
	}
	return before, ok && before > now
}

// save writes where the group stands to a file that is not there yet.
func (o *Operator) save(p *Plan, file string) (string, error) {
	u := undoFile{Group: o.settings.KafkaGroupID, Topic: o.settings.TopicPacked, Saved: time.Now().UTC().Truncate(time.Second), Offsets: map[int]int64{}, Moved: map[int]int64{}}
	for _, m := range p.Moves {
		u.Offsets[m.Partition], u.Moved[m.Partition] = m.Now, m.From
	}
	text, err := json.MarshalIndent(u, "", "  ")
	if err != nil {
		return "", fmt.Errorf("replay: %w", err)
	}
	names := []string{file}
	if file == "" {
		name := fmt.Sprintf("packship-undo-%s-%s.json", strings.Map(plainRune, u.Group), u.Saved.Format("20060102T150405"))
		names = []string{name, filepath.Join(os.TempDir(), name)} // a container may write nowhere else
	}
	var errs []error
	for _, name := range names {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the user names the file
		if err != nil {
			errs = append(errs, err)
			continue
		}
		_, err = f.Write(append(text, '\n'))
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return "", fmt.Errorf("replay: save where the group stands: %w", err)
		}
		return name, nil
	}
	if errors.Is(errs[0], fs.ErrExist) {
		return "", fmt.Errorf("replay: %s is there already; name another file with --undo", names[0])
	}
	return "", fmt.Errorf("replay: where the group stands cannot be saved (%w); name a file with --undo", errors.Join(errs...))
}

// plainRune keeps a group's name usable in that of a file.
func plainRune(r rune) rune {
	if strings.ContainsRune(`/\:`, r) || r <= ' ' {
		return '_'
	}
	return r
}

// Undo moves the group back to where a file says that it stood, and returns the
// partitions that it has moved. See [undoFile.back] for those that stay as they are.
func (o *Operator) Undo(ctx context.Context, file string) (moved []Move, err error) {
	text, err := os.ReadFile(file) //nolint:gosec // the user names the file
	if err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	var u undoFile
	if err := json.Unmarshal(text, &u); err != nil || u.Topic == "" {
		return nil, fmt.Errorf("replay: %s was not written by packship replay", file)
	}
	if u.Group != o.settings.KafkaGroupID || u.Topic != o.settings.TopicPacked {
		return nil, fmt.Errorf("replay: %s is about group %s in topic %s, and the settings are about %s in %s", file, u.Group, u.Topic, o.settings.KafkaGroupID, o.settings.TopicPacked)
	}
	if err := o.MayMove(ctx); err != nil {
		return nil, err
	}
	positions, err := o.positions(ctx)
	if err != nil {
		return nil, err
	}
	offsets := map[int]int64{}
	for _, p := range positions {
		before, ok := u.back(p.Partition, p.at)
		if !ok {
			continue
		}
		if before > p.End {
			return nil, refuse("replay: by %s the group stood at %d in partition %d, which ends at %d: the topic was made again or cut off since, so that nothing was moved; plan a replay with --from instead",
				file, before, p.Partition, p.End)
		}
		offsets[p.Partition] = before
		moved = append(moved, Move{Partition: p.Partition, Now: p.at, From: before, First: p.First, End: p.End})
	}
	if len(offsets) == 0 {
		return nil, nil
	}
	return moved, o.move(ctx, offsets)
}

// sortedKeys returns the keys of a map in their order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
