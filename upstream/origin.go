package upstream

import (
	"slices"
	"strings"
	"sync"
	"time"

	"packship/schema"
)

// foreignPlatforms are names of platforms whose orders the API cannot ship. Their
// order ids can look like those of Taobao, so that the id alone does not tell. A
// name that is not among them says nothing: a good parcel must not be held up by
// the spelling of one.
var foreignPlatforms = []string{
	"pdd", "pinduoduo", "拼多多", "douyin", "抖音", "jd", "jingdong", "京东", "kuaishou", "快手", "dangdang", "当当",
	"1688", "taogongchang", "淘工厂", "xiaohongshu", "xhs", "小红书", "youzan", "有赞", "weidian", "微店",
}

// unshippable are the kinds of orders that the platform ships in another way
// only, with what to do about them.
var unshippable = map[string]string{
	"virtual":          "ship it without logistics, in the seller's back office",
	"home_decoration":  "ship it in the seller's back office",
	"cash_on_delivery": "order the pick-up through the platform",
	"platform_pickup":  "it is shipped by confirming the pick-up on the platform",
	"cross_border":     "ship it through the platform's cross-border logistics",
}

// origin checks what the event says of where its order comes from.
func (v *validator) origin() {
	if slices.Contains(foreignPlatforms, strings.ToLower(strings.TrimSpace(v.Platform))) {
		v.violate("V22", "platform", "platform is %q, and the API ships orders of Taobao and Tmall only", cut(v.Platform, 60))
	}
	if remedy, ok := unshippable[v.OrderKind]; ok {
		v.violate("V25", "order_kind", "an order of the kind %s cannot be shipped by this API: %s", v.OrderKind, remedy)
	}
}

// parcel checks what the event says of its parcel.
func (v *validator) parcel() {
	if !v.PaidAt.IsZero() && v.CollectedAt.Before(v.PaidAt) && !v.CollectedAt.IsZero() {
		v.violate("V23", "collected_at", "the parcel was collected at %s, before the order was paid at %s: out_sid belongs to another parcel",
			v.CollectedAt.Format(time.RFC3339), v.PaidAt.Format(time.RFC3339))
	}
}

// parcels remembers whose parcels were shipped lately, so that one waybill number
// is not paid for a second time under the name of somebody else. Merged parcels
// are normal: the orders of one group share a number. Events that name no group
// are not judged.
//
// It is a saving and no promise: it forgets the oldest, and everything with the
// process.
type parcels struct {
	mu sync.Mutex
	// Two generations make forgetting cheap: the older one goes when the
	// younger is full.
	young, old map[waybill]parcel
}

// waybill is a waybill number of a carrier.
type waybill struct{ carrier, number string }

// parcel is the group of the orders in a parcel, and one of them.
type parcel struct{ group, tid string }

const (
	// maxParcels is how many parcels a generation holds.
	maxParcels = 50_000
	// maxGroup bounds what is kept of a group's name.
	maxGroup = 64
)

// shipped notes whose parcel was shipped.
func (s *parcels) shipped(p *schema.Packed) {
	if p.OrderGroup == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.young) >= maxParcels {
		s.old, s.young = s.young, nil
	}
	if s.young == nil {
		s.young = map[waybill]parcel{}
	}
	s.young[waybill{p.CompanyCode, p.OutSID}] = parcel{groupName(p), p.TID}
}

// other returns an order of another group that was shipped in the parcel of the
// event's waybill number, "" if none is known.
func (s *parcels) other(p *schema.Packed) (tid string) {
	if p.OrderGroup == "" {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := waybill{p.CompanyCode, p.OutSID}
	known, ok := s.young[key]
	if !ok {
		known, ok = s.old[key]
	}
	if !ok || known.group == groupName(p) {
		return ""
	}
	return known.tid
}

func groupName(p *schema.Packed) string { return cut(p.OrderGroup, maxGroup) }
