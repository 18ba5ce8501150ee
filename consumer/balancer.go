package consumer

import (
	"cmp"
	"encoding/json"
	"slices"
	"sync/atomic"

	"github.com/segmentio/kafka-go"
)

// singleHolder is the group balancer that gives all partitions to one member,
// and again to the same one for as long as it lives. The others are standbys.
//
// One process carries far more than an account may send, and the API ends a
// token's session when the token is used from a second address, so spreading
// partitions would cost calls and gain nothing.
//
// Kafka remembers no owner between generations. Each member therefore says in
// its user data in which generation it last held partitions, and the member
// with the highest generation keeps them. If that one is gone, the member with
// the lowest id gets them: ids are the same for whichever member computes the
// assignment.
//
// A holder that lost its connection in the middle of a join joins again as a new
// member, while the old one stays in the group until its session times out. Both
// say the same generation; the one that has joined more often is alive.
type singleHolder struct {
	name string
	// held is the generation in which this member last held partitions, -1 if
	// in its latest generation it held none.
	held atomic.Int32
	// joins counts how often this member has joined.
	joins atomic.Int64
}

// holderData is what a member says of itself when it joins.
type holderData struct {
	Name  string `json:"name"`
	Held  int32  `json:"held"`
	Joins int64  `json:"joins"`
}

func newSingleHolder(name string) *singleHolder {
	b := &singleHolder{name: name}
	b.held.Store(-1)
	return b
}

// note records whether this member holds partitions in a generation.
func (b *singleHolder) note(generation int32, holds bool) {
	if !holds {
		generation = -1
	}
	b.held.Store(generation)
}

// ProtocolName returns the name under which members agree on this balancer.
func (*singleHolder) ProtocolName() string { return "packship-single" }

// UserData is called once before every join.
func (b *singleHolder) UserData() ([]byte, error) {
	return json.Marshal(holderData{Name: b.name, Held: b.held.Load(), Joins: b.joins.Add(1)})
}

// AssignGroups gives all partitions to the present holder, or to the member
// with the lowest id. Members that are not in the answer get nothing.
func (*singleHolder) AssignGroups(members []kafka.GroupMember, partitions []kafka.Partition) kafka.GroupMemberAssignments {
	if len(members) == 0 {
		return nil
	}
	holder := slices.MinFunc(members, func(a, b kafka.GroupMember) int {
		x, y := dataOf(a), dataOf(b)
		return cmp.Or(cmp.Compare(y.Held, x.Held), cmp.Compare(y.Joins, x.Joins), cmp.Compare(a.ID, b.ID))
	})
	topics := make(map[string][]int)
	for _, p := range partitions {
		topics[p.Topic] = append(topics[p.Topic], p.ID)
	}
	for _, ids := range topics {
		slices.Sort(ids)
	}
	return kafka.GroupMemberAssignments{holder.ID: topics}
}

// dataOf reads a member's user data. A member that says nothing readable has held
// nothing. Joins only count between those who say that they held something.
func dataOf(m kafka.GroupMember) holderData {
	d := holderData{Held: -1}
	if err := json.Unmarshal(m.UserData, &d); err != nil || d.Held < 0 {
		return holderData{Held: -1}
	}
	return d
}
