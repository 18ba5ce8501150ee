package consumer

import (
	"cmp"
	"encoding/json"
	"slices"
	"sync"

	"github.com/google/uuid"
	"github.com/segmentio/kafka-go"
)

// Share is the part of the work that a member has: the Index-th of so many equal
// ones, counted from 0.
type Share struct {
	Index, Of int
}

// whole is the share of a member that has everything to itself.
var whole = Share{Of: 1}

// shareOf returns the share that a set of partitions, in ascending order, stands
// for. The client library tells a member only its own partitions, so spreadHolder
// assigns them in such a way that they say who else there is: a member has every
// Of-th partition from the Index-th on, and two at least if there are others.
func shareOf(partitions []int) Share {
	if len(partitions) < 2 {
		return whole
	}
	return Share{Index: partitions[0], Of: partitions[1] - partitions[0]}
}

// spreadHolder is the group balancer that shares the partitions out among up to
// limit members, evenly, and each to the same member for as long as nobody comes
// or goes. The others are standbys. There are never more shares than half the
// partitions; see [shareOf].
//
// Everything that a member holds says what share it is. Each member says in its
// user data which share it held in which generation; the latest holder of a share
// keeps it. See [singleHolder] for what becomes of a member whose connection was
// lost while it joined: here the two are told apart by the process's own id.
type spreadHolder struct {
	limit int
	id    string // of this process

	mu    sync.Mutex
	held  spreadData // guarded by mu
	joins int64      // guarded by mu; how often this member has joined
}

// spreadData is what a member says of itself when it joins.
type spreadData struct {
	ID    string `json:"id"`
	Joins int64  `json:"joins"`
	// Held is the generation in which the member last held a share, -1 if in
	// its latest it held none.
	Held  int32 `json:"held"`
	Index int   `json:"index"`
	Of    int   `json:"of"`
}

func newSpreadHolder(limit int) *spreadHolder {
	return &spreadHolder{limit: limit, id: uuid.NewString(), held: spreadData{Held: -1}}
}

// note records what this member holds in a generation.
func (b *spreadHolder) note(generation int32, partitions []int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = spreadData{Held: -1}
	if len(partitions) > 0 {
		s := shareOf(partitions)
		b.held = spreadData{Held: generation, Index: s.Index, Of: s.Of}
	}
}

// ProtocolName returns the name under which members agree on this balancer.
func (*spreadHolder) ProtocolName() string { return "packship-spread" }

// UserData is called once before every join.
func (b *spreadHolder) UserData() ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.joins++
	d := b.held
	d.ID, d.Joins = b.id, b.joins
	return json.Marshal(d)
}

// AssignGroups shares the partitions of a topic out. Members that are not in the
// answer get nothing.
func (b *spreadHolder) AssignGroups(members []kafka.GroupMember, partitions []kafka.Partition) kafka.GroupMemberAssignments {
	topics := make(map[string][]int)
	fewest := 0
	for _, p := range partitions {
		topics[p.Topic] = append(topics[p.Topic], p.ID)
	}
	for _, ids := range topics {
		slices.Sort(ids)
		if fewest == 0 || len(ids) < fewest {
			fewest = len(ids)
		}
	}
	alive := withoutGhosts(members)
	of := max(1, min(len(alive), b.limit, fewest/2))
	assigned := make(kafka.GroupMemberAssignments)
	for index, member := range seats(alive, of) {
		assigned[member] = make(map[string][]int)
		for topic, ids := range topics {
			for i := index; i < len(ids); i += of {
				assigned[member][topic] = append(assigned[member][topic], ids[i])
			}
		}
	}
	return assigned
}

// candidate is a member that may get a share.
type candidate struct {
	spreadData

	member string
}

// withoutGhosts lists the members by the time of their last share, the latest
// first, each process once: as the member that it has joined as last.
func withoutGhosts(members []kafka.GroupMember) []candidate {
	var all []candidate
	for _, m := range members {
		c := candidate{member: m.ID}
		if err := json.Unmarshal(m.UserData, &c.spreadData); err != nil {
			c.spreadData = spreadData{Held: -1}
		}
		if c.ID == "" {
			c.ID = m.ID
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.Held, a.Held), cmp.Compare(b.Joins, a.Joins), cmp.Compare(a.member, b.member))
	})
	latest := make(map[string]int64)
	for _, c := range all {
		latest[c.ID] = max(latest[c.ID], c.Joins)
	}
	seen := make(map[string]bool)
	return slices.DeleteFunc(all, func(c candidate) bool {
		ghost := seen[c.ID] || c.Joins < latest[c.ID]
		seen[c.ID] = seen[c.ID] || !ghost
		return ghost
	})
}

// seats gives each of so many shares, of which there are no more than members, to
// one of them, by index: the share that it held, if it held one of as many, else
// one that is free.
func seats(members []candidate, of int) []string {
	taken := make([]string, of)
	var others []candidate
	for _, c := range members {
		if c.Held >= 0 && c.Of == of && c.Index >= 0 && c.Index < of && taken[c.Index] == "" {
			taken[c.Index] = c.member
		} else {
			others = append(others, c)
		}
	}
	for i := range taken {
		if taken[i] == "" && len(others) > 0 {
			taken[i], others = others[0].member, others[1:]
		}
	}
	return taken
}
