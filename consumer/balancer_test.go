package consumer

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
)

func TestSingleHolderAssigns(t *testing.T) {
	partitions := []kafka.Partition{{Topic: "t", ID: 2}, {Topic: "t", ID: 0}, {Topic: "t", ID: 1}}
	all := map[string][]int{"t": {0, 1, 2}}
	member := func(id, data string) kafka.GroupMember {
		return kafka.GroupMember{ID: id, Topics: []string{"t"}, UserData: []byte(data)}
	}
	tests := map[string]struct {
		members []kafka.GroupMember
		want    string
	}{
		"one member":                                    {[]kafka.GroupMember{member("a", `{"held":-1}`)}, "a"},
		"nobody held: lowest id":                        {[]kafka.GroupMember{member("b", `{"held":-1}`), member("a", `{"held":-1}`)}, "a"},
		"the holder keeps all":                          {[]kafka.GroupMember{member("a", `{"held":-1}`), member("b", `{"name":"x","held":4}`)}, "b"},
		"the latest holder":                             {[]kafka.GroupMember{member("a", `{"held":4}`), member("b", `{"held":7}`)}, "b"},
		"a tie: lowest id":                              {[]kafka.GroupMember{member("c", `{"held":7}`), member("b", `{"held":7}`), member("a", `{"held":6}`)}, "b"},
		"a ghost of the holder: who joined last":        {[]kafka.GroupMember{member("a", `{"held":7,"joins":4}`), member("b", `{"held":7,"joins":5}`)}, "b"},
		"joins do not count for those who hold nothing": {[]kafka.GroupMember{member("a", `{"held":-1,"joins":1}`), member("b", `{"held":-1,"joins":9}`)}, "a"},
		"generation 0 counts":                           {[]kafka.GroupMember{member("a", `{"held":-1}`), member("b", `{"held":0}`)}, "b"},
		"no user data: held nothing":                    {[]kafka.GroupMember{member("a", ""), member("b", `{"held":1}`)}, "b"},
		"damaged data: held nothing":                    {[]kafka.GroupMember{member("a", `{"held":99`), member("b", `{"held":1}`)}, "b"},
		"data without a generation":                     {[]kafka.GroupMember{member("a", `{"name":"x"}`), member("b", `{"held":0}`)}, "b"},
		"data of the wrong type":                        {[]kafka.GroupMember{member("a", `{"held":"9"}`), member("b", `{"held":0}`)}, "b"},
		"data that is no object at all":                 {[]kafka.GroupMember{member("a", "\x00\x01"), member("b", `[]`)}, "a"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newSingleHolder("x")
			want := kafka.GroupMemberAssignments{test.want: all}
			if diff := cmp.Diff(want, b.AssignGroups(test.members, partitions)); diff != "" {
				t.Error(diff)
			}
			// Every member computes the same, in whatever order it is told of
			// the others.
			slices.Reverse(test.members)
			if diff := cmp.Diff(want, b.AssignGroups(test.members, partitions)); diff != "" {
				t.Errorf("in reverse order: %s", diff)
			}
		})
	}
	if got := newSingleHolder("x").AssignGroups(nil, partitions); len(got) != 0 {
		t.Errorf("without members: %v", got)
	}
}

func TestSingleHolderUserData(t *testing.T) {
	b := newSingleHolder("north-1")
	held := func() int32 {
		t.Helper()
		data, err := b.UserData()
		if err != nil {
			t.Fatal(err)
		}
		return dataOf(kafka.GroupMember{UserData: data}).Held
	}
	if got := held(); got != -1 {
		t.Errorf("at first: held %d, want -1", got)
	}
	b.note(5, true)
	if got := held(); got != 5 {
		t.Errorf("as holder: held %d, want 5", got)
	}
	b.note(6, false)
	if got := held(); got != -1 {
		t.Errorf("as standby: held %d, want -1", got)
	}
}

// FuzzUserData: whatever another member says, the assignment goes on.
func FuzzUserData(f *testing.F) {
	f.Add([]byte(`{"name":"a","held":3}`))
	f.Add([]byte(`{"held":1e400}`))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		members := []kafka.GroupMember{{ID: "a", UserData: data}, {ID: "b", UserData: []byte(`{"held":2}`)}}
		got := newSingleHolder("x").AssignGroups(members, []kafka.Partition{{Topic: "t", ID: 0}})
		if len(got) != 1 {
			t.Errorf("assigned to %d members", len(got))
		}
	})
}
