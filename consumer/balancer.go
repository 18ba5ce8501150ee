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
type singleHolder struct {
	name string
	// held is the generation in which this member last held partitions, -1 if
	// in its latest generation it held none.
	held atomic.Int32
}

// holderData is what a member says of itself when it joins.
type holderData struct {
	Name string `json:"name"`
	Held int32  `json:"held"`
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

// UserData is called before every join.
func (b *singleHolder) UserData() ([]byte, error) {
	return json.Marshal(holderData{Name: b.name, Held: b.held.Load()})
}

// AssignGroups gives all partitions to the present holder, or to the member
// with the lowest id. Members that are not in the answer get nothing.
func (*singleHolder) AssignGroups(members []kafka.GroupMember, partitions []kafka.Partition) kafka.GroupMemberAssignments {
	if len(members) == 0 {
		return nil
	}
	holder := slices.MinFunc(members, func(a, b kafka.GroupMember) int {
		return cmp.Or(cmp.Compare(heldBy(b), heldBy(a)), cmp.Compare(a.ID, b.ID))
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

// heldBy reads the generation out of a member's user data. A member that says
// nothing readable has held nothing.
func heldBy(m kafka.GroupMember) int32 {
	d := holderData{Held: -1}
	if err := json.Unmarshal(m.UserData, &d); err != nil {
		return -1
	}
	return d.Held
}
