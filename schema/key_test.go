package schema

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func shipment() Shipment {
	return Shipment{
		ShopID: "123456789", TID: "3941893279420000001", Split: "1",
		SubTID: []string{"3941893279420000002", "3941893279420000003"}, OutSID: "SF0000000000001", CompanyCode: "SF",
	}
}

// What these tests compare with stands in ledgers. A change here makes packship
// forget what it has shipped, and so ship it again.
func TestKeysNeverChange(t *testing.T) {
	whole := shipment()
	whole.Split, whole.SubTID = "0", nil
	named := shipment()
	named.CompanyCode = "顺丰快递"
	for _, test := range []struct {
		name                  string
		s                     Shipment
		canonical, key, order string
	}{
		{"whole", whole, "9:12345678919:39418932794200000011:015:SF00000000000012:SF", "1ef79a2aeef72f5c1d5b21ebdd50b02b", "234125f5ef1cafd2"},
		{"split", shipment(), "9:12345678919:39418932794200000011:115:SF00000000000012:SF19:394189327942000000219:3941893279420000003", "1ef79a2aeef72f5c7d55dc49fb145168", "234125f5ef1cafd2"},
		{"carrier in Chinese", named, "9:12345678919:39418932794200000011:115:SF000000000000112:顺丰快递19:394189327942000000219:3941893279420000003", "1ef79a2aeef72f5c21ca000898d24a7d", "234125f5ef1cafd2"},
		{"empty", Shipment{}, "0:0:0:0:0:", "ba768b331fd86cecfabc833872435cea", "390feabc786e369e"},
	} {
		if got := test.s.Canonical(); got != test.canonical {
			t.Errorf("%s: canonical form %q, want %q", test.name, got, test.canonical)
		}
		if got := fmt.Sprintf("%x", test.s.Key()); got != test.key {
			t.Errorf("%s: key %s, want %s", test.name, got, test.key)
		}
		if got := fmt.Sprintf("%x", test.s.Order()); got != test.order {
			t.Errorf("%s: order key %s, want %s", test.name, got, test.order)
		}
	}
	if got, want := fmt.Sprintf("%x", HashEvent("evt-1")), "7b409f932d2c88e9"; got != want {
		t.Errorf("hash of an event id %s, want %s", got, want)
	}
}

func TestLedgerPartitionNeverChanges(t *testing.T) {
	for _, test := range []struct {
		shop, tid string
		of8, of64 int
	}{
		{"123456789", "1", 4, 44},
		{"123456789", "2", 2, 26},
		{"123456789", "3941893279420000001", 2, 18},
		{"987654321", "3941893279420000001", 6, 30},
		{"dwadaw_7-dawd", "9223372036854775807", 5, 5},
	} {
		s := Shipment{ShopID: test.shop, TID: test.tid, OutSID: "any", CompanyCode: "other"}
		if got := s.Order().LedgerPartition(8); got != test.of8 {
			t.Errorf("order %s of shop %s: partition %d of 8, want %d", test.tid, test.shop, got, test.of8)
		}
		if got := s.Order().LedgerPartition(64); got != test.of64 {
			t.Errorf("order %s of shop %s: partition %d of 64, want %d", test.tid, test.shop, got, test.of64)
		}
	}
}

func TestLedgerPartitionsAreEven(t *testing.T) {
	const partitions, orders = 8, 80_000
	counts := make([]int, partitions)
	for i := range orders {
		s := Shipment{ShopID: "123456789", TID: fmt.Sprint(3941893279420000001 + i)}
		counts[s.Order().LedgerPartition(partitions)]++
	}
	for p, n := range counts {
		if n < orders/partitions*95/100 || n > orders/partitions*105/100 {
			t.Errorf("partition %d holds %d of %d orders: %v", p, n, orders, counts)
		}
	}
}

func TestKeyParts(t *testing.T) {
	s := shipment()
	key := s.Key()
	if prefix := TIDPrefix(s.TID); [8]byte(key[:8]) != prefix {
		t.Errorf("key %x does not begin with the order's prefix %x", key, prefix)
	}
	for name, change := range map[string]func(*Shipment){
		"shop":             func(s *Shipment) { s.ShopID = "123456780" },
		"order":            func(s *Shipment) { s.TID = "3941893279420000009" },
		"split":            func(s *Shipment) { s.Split = "0" },
		"split not a mark": func(s *Shipment) { s.Split = `"1"` },
		"a sub-order less": func(s *Shipment) { s.SubTID = s.SubTID[:1] },
		"a sub-order more": func(s *Shipment) { s.SubTID = append(s.SubTID, "3941893279420000004") },
		"other sub-order":  func(s *Shipment) { s.SubTID[0] = "3941893279420000004" },
		"no sub-order":     func(s *Shipment) { s.SubTID = nil },
		"waybill":          func(s *Shipment) { s.OutSID = "SF0000000000002" },
		"carrier":          func(s *Shipment) { s.CompanyCode = "YTO" },
	} {
		other := shipment()
		change(&other)
		if other.Key() == key {
			t.Errorf("%s: the key is the same", name)
		}
		sameOrder := other.ShopID == s.ShopID && other.TID == s.TID
		if (other.Order() == s.Order()) != sameOrder {
			t.Errorf("%s: order keys %x and %x", name, s.Order(), other.Order())
		}
		samePrefix := [8]byte(key[:8]) == TIDPrefix(other.TID)
		if samePrefix != (other.TID == s.TID) {
			t.Errorf("%s: prefix of the order id", name)
		}
	}
}

func TestKeyIgnoresHowItIsWritten(t *testing.T) {
	want := shipment()
	for name, event := range map[string]string{
		"order of sub-orders": `"out_sid":"SF0000000000001","company_code":"SF","sub_tid":"3941893279420000003,3941893279420000002"`,
		"sub-orders in array": `"out_sid":"SF0000000000001","company_code":"SF","sub_tid":[3941893279420000003,"3941893279420000002"]`,
		"sub-order twice":     `"out_sid":"SF0000000000001","company_code":"SF","sub_tid":[3941893279420000003,3941893279420000002,3941893279420000003]`,
		"case":                `"out_sid":"sf0000000000001","company_code":"sf","sub_tid":"3941893279420000002,3941893279420000003"`,
		"full width":          `"out_sid":"ＳＦ００００００００００００１","company_code":"ｓｆ","sub_tid":"3941893279420000002,3941893279420000003"`,
		"space around":        `"out_sid":" \t\u3000\u200b\ufeff\u00a0SF0000000000001\r\n","company_code":"\u200bSF\u3000","sub_tid":"3941893279420000002,3941893279420000003"`,
	} {
		p := decode(t, record(`{"shop_id":"123456789","tid":3941893279420000001,"is_split":1,`+event+`}`))
		if p.Shipment.Key() != want.Key() {
			t.Errorf("%s: shipment %+v is another than %+v", name, p.Shipment, want)
		}
	}
}

func TestNormalizeWaybill(t *testing.T) {
	for in, want := range map[string]string{
		"":                  "",
		" ":                 "",
		"sf123":             "SF123",
		"\u200bsf123\ufeff": "SF123",
		"　ｓｆ１２３　":           "SF123",
		"SF－123":            "SF-123",
		"SF 123":            "SF 123", // a rule's business
		"SF\u200b123":       "SF\u200b123",
		"顺丰123":             "顺丰123",
		"\x00SF123\x7f":     "SF123\x7f",
		"SF123;SF124":       "SF123;SF124",
	} {
		if got := NormalizeWaybill(in); got != want {
			t.Errorf("NormalizeWaybill(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestNormalizeCarrier(t *testing.T) {
	for in, want := range map[string]string{
		"":            "",
		"sf":          "SF",
		"ＳＦ":          "SF",
		" Yto\u3000":  "YTO",
		"顺丰快递":        "顺丰快递",
		"\u200b顺丰快递 ": "顺丰快递",
		"顺丰sf":        "顺丰sf",
		"顺丰ＳＦ":        "顺丰ＳＦ",
		"other":       "OTHER",
	} {
		if got := NormalizeCarrier(in); got != want {
			t.Errorf("NormalizeCarrier(%q) = %q, want %q", in, got, want)
		}
	}
}

// Normalising a second time changes nothing: what was read back from a result
// is the same shipment.
func TestNormalizingTwiceIsNormalizingOnce(t *testing.T) {
	for r := range rune(0x20000) { // no letter beyond has a case or a width
		for _, s := range []string{string(r), "a" + string(r) + "\u200b"} {
			if once := NormalizeWaybill(s); NormalizeWaybill(once) != once {
				t.Fatalf("NormalizeWaybill(%q) = %q, then %q", s, once, NormalizeWaybill(once))
			}
			if once := NormalizeCarrier(s); NormalizeCarrier(once) != once {
				t.Fatalf("NormalizeCarrier(%q) = %q, then %q", s, once, NormalizeCarrier(once))
			}
		}
	}
}

// No two shipments have the same canonical form, however their parts are cut.
func TestCanonicalIsUnambiguous(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	words := []string{"", "0", "1", "11", "1:1", ":", "2:11", ",", "1,1", "3:1:1"}
	word := func() string { return words[rnd.IntN(len(words))] }
	seen := map[string]string{}
	for range 30_000 {
		s := Shipment{ShopID: word(), TID: word(), Split: word(), OutSID: word(), CompanyCode: word()}
		subs := map[string]bool{}
		for range rnd.IntN(4) {
			sub := word()
			subs[sub] = true
			s.SubTID = append(s.SubTID, sub)
		}
		// The parts, told apart by a byte that none of them holds.
		parts := []string{s.ShopID, s.TID, s.Split, s.OutSID, s.CompanyCode}
		parts = append(parts, slices.Sorted(maps.Keys(subs))...)
		name := strings.Join(parts, "\x00")
		canonical := s.Canonical()
		if other, ok := seen[canonical]; ok && other != name {
			t.Fatalf("seed %d: %q and %q are both %q", seed, name, other, canonical)
		}
		seen[canonical] = name
		back, ok := ParseShipment(canonical)
		if !ok || back.Canonical() != canonical || back.Key() != s.Key() || back.Order() != s.Order() {
			t.Fatalf("seed %d: ParseShipment(%q) = %+v, %t", seed, canonical, back, ok)
		}
	}
	if len(seen) < 5_000 {
		t.Errorf("seed %d: only %d shipments", seed, len(seen))
	}
}

func TestParseShipment(t *testing.T) {
	s := shipment()
	got, ok := ParseShipment(s.Canonical())
	if !ok {
		t.Fatalf("ParseShipment refuses %q", s.Canonical())
	}
	if diff := cmp.Diff(s, got); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	for _, canonical := range []string{
		"", "x", "1:", "1:1", "0:0:0:0:", "0:0:0:0:0", "0:0:0:0:0:1", "0:0:0:0:0:x", ":0:0:0:0:",
		"00:0:0:0:0:", "+0:0:0:0:0:", "-1:0:0:0:0:", "01:a0:0:0:0:", "9223372036854775808:0:0:0:0:",
		"0:0:0:0:0:1:21:1", // sub-orders not sorted
		"0:0:0:0:0:1:11:1", // a sub-order twice
	} {
		if got, ok := ParseShipment(canonical); ok || !cmp.Equal(got, Shipment{}) {
			t.Errorf("ParseShipment(%q) = %+v, %t; want none", canonical, got, ok)
		}
	}
}

func TestCanonicalLeavesTheShipmentAlone(t *testing.T) {
	s := Shipment{SubTID: []string{"3", "1", "2", "1"}}
	_, _ = s.Canonical(), s.Key()
	if diff := cmp.Diff([]string{"3", "1", "2", "1"}, s.SubTID); diff != "" {
		t.Errorf("sub-orders (-before +after):\n%s", diff)
	}
}

func FuzzParseShipment(f *testing.F) {
	s := shipment()
	f.Add(s.Canonical(), "1", "2", "3")
	f.Add("0:0:0:0:0:", "", ":", "1:")
	f.Add("1:a1:b1:c1:d1:e1:f", "é", "\xff", "顺丰")
	f.Fuzz(func(t *testing.T, canonical, a, b, c string) {
		if s, ok := ParseShipment(canonical); ok {
			if s.Canonical() != canonical {
				t.Fatalf("%q is read as %+v, that is %q", canonical, s, s.Canonical())
			}
		} else if !cmp.Equal(s, Shipment{}) {
			t.Fatalf("%q is refused but read as %+v", canonical, s)
		}
		s := Shipment{ShopID: a, TID: b, Split: c, OutSID: canonical, CompanyCode: a + b, SubTID: []string{c, a, b}}
		back, ok := ParseShipment(s.Canonical())
		if !ok || back.Canonical() != s.Canonical() || back.Key() != s.Key() {
			t.Fatalf("%+v is read back as %+v, %t", s, back, ok)
		}
		if back.ShopID != a || back.TID != b || back.Split != c || back.OutSID != canonical || back.CompanyCode != a+b {
			t.Fatalf("%+v is read back as %+v", s, back)
		}
	})
}
