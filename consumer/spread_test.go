package consumer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
)

// allOf returns the partitions of a topic.
func allOf(n int) (partitions []kafka.Partition) {
	for id := range n {
		partitions = append(partitions, kafka.Partition{Topic: testTopic, ID: id})
	}
	return partitions
}

func TestSpreadHolderAssigns(t *testing.T) {
	member := func(id, data string) kafka.GroupMember {
		return kafka.GroupMember{ID: id, Topics: []string{testTopic}, UserData: []byte(data)}
	}
	tests := map[string]struct {
		partitions, limit int
		members           []kafka.GroupMember
		want              map[string][]int
	}{
		"one member": {
			4, 10,
			[]kafka.GroupMember{member("a", "")},
			map[string][]int{"a": {0, 1, 2, 3}},
		},
		"two": {
			5, 10,
			[]kafka.GroupMember{member("b", ""), member("a", "")},
			map[string][]int{"a": {0, 2, 4}, "b": {1, 3}},
		},
		"too few partitions for two": {
			3, 10,
			[]kafka.GroupMember{member("a", ""), member("b", "")},
			map[string][]int{"a": {0, 1, 2}},
		},
		"one partition": {
			1, 10,
			[]kafka.GroupMember{member("a", ""), member("b", `{"id":"x","held":4,"of":1}`)},
			map[string][]int{"b": {0}},
		},
		"no more than the limit": {
			8, 2,
			[]kafka.GroupMember{member("a", ""), member("b", ""), member("c", "")},
			map[string][]int{"a": {0, 2, 4, 6}, "b": {1, 3, 5, 7}},
		},
		"a limit of none is one": {
			8, 0,
			[]kafka.GroupMember{member("a", ""), member("b", "")},
			map[string][]int{"a": {0, 1, 2, 3, 4, 5, 6, 7}},
		},
		"everybody keeps what he had": {
			6, 10,
			[]kafka.GroupMember{
				member("a", `{"id":"x","held":4,"index":2,"of":3}`), member("b", `{"id":"y","held":4,"index":0,"of":3}`), member("c", ""),
			},
			map[string][]int{"a": {2, 5}, "b": {0, 3}, "c": {1, 4}},
		},
		"the latest holder": {
			4, 2,
			[]kafka.GroupMember{
				member("a", `{"id":"x","held":4,"index":1,"of":2}`), member("b", `{"id":"y","held":5,"index":1,"of":2}`), member("c", `{"id":"z","held":5,"index":0,"of":2}`),
			},
			map[string][]int{"b": {1, 3}, "c": {0, 2}},
		},
		"a process that joined again while it is still there": {
			8, 10,
			[]kafka.GroupMember{
				member("a", `{"id":"x","joins":4,"held":4,"index":0,"of":2}`), member("b", `{"id":"x","joins":5,"held":4,"index":0,"of":2}`), member("c", `{"id":"y","joins":9,"held":4,"index":1,"of":2}`),
			},
			map[string][]int{"b": {0, 2, 4, 6}, "c": {1, 3, 5, 7}},
		},
		"a share that cannot be": {
			4, 10,
			[]kafka.GroupMember{member("a", `{"id":"x","held":4,"index":7,"of":2}`), member("b", `{"id":"y","held":4,"index":-1,"of":2}`)},
			map[string][]int{"a": {0, 2}, "b": {1, 3}},
		},
		"damaged data": {
			4, 10,
			[]kafka.GroupMember{member("a", `{"id":"x","held":99`), member("b", "\x00\x01")},
			map[string][]int{"a": {0, 2}, "b": {1, 3}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newSpreadHolder(tt.limit)
			for _, order := range []string{"as they come", "in reverse"} {
				got := map[string][]int{}
				for id, topics := range b.AssignGroups(tt.members, allOf(tt.partitions)) {
					got[id] = topics[testTopic]
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", order, diff)
				}
				slices.Reverse(tt.members)
			}
		})
	}
	if got := newSpreadHolder(2).AssignGroups(nil, allOf(4)); len(got) > 1 {
		t.Errorf("without members: %v", got)
	}
}

// TestSpreadHolderSharesEverythingOnce has members come and go at random. In every
// generation each partition belongs to one of them, no two have the same share,
// and who stays where nobody has come or gone keeps what it had.
func TestSpreadHolderSharesEverythingOnce(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		partitions, limit := 1+random.IntN(20), 1+random.IntN(6)
		type process struct {
			id string
			b  *spreadHolder
		}
		var processes []*process
		assign := func() kafka.GroupMemberAssignments {
			var members []kafka.GroupMember
			for _, p := range processes {
				data, err := p.b.UserData()
				if err != nil {
					t.Fatal(err)
				}
				members = append(members, kafka.GroupMember{ID: p.id, Topics: []string{testTopic}, UserData: data})
			}
			// Whichever of them leads the group.
			return processes[random.IntN(len(processes))].b.AssignGroups(members, allOf(partitions))
		}
		for generation := int32(1); generation <= 20; generation++ {
			if len(processes) > 1 && random.IntN(3) == 0 {
				at := random.IntN(len(processes))
				processes = slices.Delete(processes, at, at+1)
			} else {
				processes = append(processes, &process{id: fmt.Sprintf("%d-%d", random.IntN(1000), generation), b: newSpreadHolder(limit)})
			}
			assigned := assign()
			owner, shares := map[int]string{}, map[Share]string{}
			for _, p := range processes {
				mine := assigned[p.id][testTopic]
				p.b.note(generation, mine)
				for _, id := range mine {
					if owner[id] != "" {
						t.Fatalf("seed %d: partition %d is %s's and %s's", seed, id, owner[id], p.id)
					}
					owner[id] = p.id
				}
				if len(mine) == 0 {
					continue
				}
				s := shareOf(mine)
				if shares[s] != "" || s.Of != len(assigned) || s.Index >= s.Of || s.Of > limit {
					t.Fatalf("seed %d: %s has share %+v of %d members, limit %d", seed, p.id, s, len(assigned), limit)
				}
				shares[s] = p.id
			}
			if len(owner) != partitions {
				t.Fatalf("seed %d: %d of %d partitions have an owner", seed, len(owner), partitions)
			}
			if diff := cmp.Diff(assigned, assign()); diff != "" {
				t.Fatalf("seed %d: nobody has come or gone, and yet (-before +after):\n%s", seed, diff)
			}
		}
	}
}

// TestSpreadMembersShare has two members at work at a time, a third that cannot
// have a share, and one of the first two leave. Each is told its share before it
// may call.
func TestSpreadMembersShare(t *testing.T) {
	inWorld(t, 4, func(w *world) {
		t := w.t
		spread := func(told *[]Share) func(*Config) {
			return func(c *Config) {
				c.Shares = 2
				c.Share = func(s Share) { *told = append(*told, s) }
			}
		}
		var ofA, ofB, ofC []Share
		h := new(fakeHandler)
		a := w.start("a", h, spread(&ofA))
		a.awaitRole(RoleActive)
		b := w.start("b", h, spread(&ofB))
		both := func() bool {
			return a.metric("packship_assigned_partitions") == 2 && b.metric("packship_assigned_partitions") == 2 &&
				a.c.Status().GateOpen && b.c.Status().GateOpen
		}
		await(t, "two members at work", both)
		c := w.start("c", h, spread(&ofC))
		c.awaitRole(RoleStandby)
		await(t, "two members at work beside a standby", both)
		for p := range 4 {
			w.produce(p, events("shop", 1000*(p+1), 50)...)
		}
		for p := range 4 {
			w.awaitCommit(p, 50)
		}
		for _, r := range []*replica{a, b} {
			if n := r.metric("packship_events_consumed_total", "topic="+testTopic); n != 100 {
				t.Errorf("a member has read %v of 200 records, want half of them", n)
			}
		}
		if len(ofC) != 0 {
			t.Errorf("the standby was told of shares %v", ofC)
		}
		if err := a.stop(); err != nil {
			t.Error(err)
		}
		c.awaitRole(RoleActive)
		await(t, "two members at work again", func() bool { return b.c.Status().GateOpen && c.c.Status().GateOpen })
		last := func(told []Share) Share { return told[len(told)-1] }
		if got := []Share{ofA[0], last(ofA), last(ofB), last(ofC)}; !slices.Equal(got, []Share{whole, {0, 2}, {1, 2}, {0, 2}}) {
			t.Errorf("the shares were %v", got)
		}
		h.inOrder(t)
		w.commits.neverBack(t)
	})
}

// TestRollOverToSpread has a member of each kind in the group: they agree on one
// holder, and share once only those that can are left.
func TestRollOverToSpread(t *testing.T) {
	inWorld(t, 4, func(w *world) {
		t := w.t
		spread := func(c *Config) { c.Shares = 2 }
		old := w.start("old", new(fakeHandler))
		old.awaitRole(RoleActive)
		a := w.start("a", new(fakeHandler), spread)
		b := w.start("b", new(fakeHandler), spread)
		a.awaitRole(RoleStandby)
		b.awaitRole(RoleStandby)
		if err := old.stop(); err != nil {
			t.Error(err)
		}
		await(t, "two members at work", func() bool { return a.c.Status().GateOpen && b.c.Status().GateOpen })
	})
}
