package operate

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"packship/cmd/internal/app"
)

// doneGroup is a group without members, whose offsets say which dead letters are
// done: all before the offset, and those after it that stand beside it.
func (o *Operator) doneGroup() string { return o.settings.KafkaGroupID + "-dlq" }

// marks are the dead letters of a partition that are done: those before an
// offset, and some behind it.
type marks struct {
	upTo   int64
	behind []int64 // sorted
}

// done reports whether a dead letter is. Without marks, as of a partition that has
// just been added, none is.
func (m *marks) done(offset int64) bool {
	if m == nil {
		return false
	}
	_, found := slices.BinarySearch(m.behind, offset)
	return found || offset < m.upTo
}

// add marks a dead letter. What is before the first that is still there is done
// as well.
func (m *marks) add(offset, first int64) {
	if at, found := slices.BinarySearch(m.behind, offset); !found {
		m.behind = slices.Insert(m.behind, at, offset)
	}
	m.raise(max(m.upTo, first))
}

// raise marks everything before an offset.
func (m *marks) raise(upTo int64) {
	m.upTo = upTo
	for len(m.behind) > 0 && m.behind[0] <= m.upTo {
		m.upTo = max(m.upTo, m.behind[0]+1)
		m.behind = m.behind[1:]
	}
}

// String writes the marks behind the offset, as 7,9-12.
func (m *marks) String() string {
	var runs []string
	for i := 0; i < len(m.behind); {
		last := i
		for last+1 < len(m.behind) && m.behind[last+1] == m.behind[last]+1 {
			last++
		}
		run := strconv.FormatInt(m.behind[i], 10)
		if last > i {
			run += "-" + strconv.FormatInt(m.behind[last], 10)
		}
		runs = append(runs, run)
		i = last + 1
	}
	return strings.Join(runs, ",")
}

// parseMarks reads what stands beside the offset of the group. What it does not
// understand, another has written there.
func parseMarks(p app.Progress) *marks {
	m := &marks{}
	for run := range strings.SplitSeq(p.Metadata, ",") {
		from, to, isRange := strings.Cut(run, "-")
		if !isRange {
			to = from
		}
		first, errF := strconv.ParseInt(from, 10, 64)
		last, errL := strconv.ParseInt(to, 10, 64)
		if errF != nil || errL != nil || last-first > p.End-p.First {
			continue
		}
		for offset := max(first, p.First); offset <= last; offset++ {
			m.behind = append(m.behind, offset)
		}
	}
	slices.Sort(m.behind)
	m.behind = slices.Compact(m.behind)
	m.raise(max(0, p.Committed))
	return m
}

// doneLetters returns what is done, by partition.
func (o *Operator) doneLetters(ctx context.Context) (map[int]*marks, []app.Progress, error) {
	progress, err := o.kafka.ProgressOf(ctx, o.doneGroup(), o.settings.TopicDLQ)
	if err != nil {
		return nil, nil, err
	}
	done := map[int]*marks{}
	for _, p := range progress {
		done[p.Partition] = parseMarks(p)
	}
	return done, progress, nil
}

// maxMarks is how long the text beside an offset may be. Brokers take 4096 bytes
// unless they are told otherwise.
const maxMarks = 4000

// MarkDone marks dead letters as done, and with before all that stand before them
// in their partitions. It returns how many those are.
func (o *Operator) MarkDone(ctx context.Context, ids []string, before bool) (int64, error) {
	var letters []Letter
	for _, id := range ids {
		l, err := o.DeadLetter(ctx, id)
		if err != nil {
			return 0, err
		}
		letters = append(letters, l)
	}
	done, progress, err := o.doneLetters(ctx) // afterwards, so that it has all their partitions
	if err != nil {
		return 0, err
	}
	ends := map[int]app.Progress{}
	for _, p := range progress {
		ends[p.Partition] = p
	}
	var n int64
	for _, l := range letters {
		partition, offset := l.Record.Partition, l.Record.Offset
		m, first := done[partition], ends[partition].First
		from := offset
		if before {
			from = max(first, m.upTo)
		}
		for at := from; at <= offset; at++ {
			if !m.done(at) {
				n++
			}
		}
		if before {
			m.raise(max(m.upTo, offset+1))
		}
		m.add(offset, first)
		if len(m.String()) > maxMarks {
			return 0, refuse("dlq: too many dead letters of partition %d are done while earlier ones are not; see to those with `packship dlq list`, or mark them as well with --before", partition)
		}
	}
	if n == 0 {
		return 0, nil
	}
	// All of them, because Kafka forgets what nobody has committed for a while.
	places := map[int]app.Place{}
	for partition, m := range done {
		places[partition] = app.Place{Offset: m.upTo, Metadata: m.String()}
	}
	return n, o.kafka.Put(ctx, o.doneGroup(), o.settings.TopicDLQ, places)
}
