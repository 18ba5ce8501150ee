package upstream

import (
	"slices"
	"strings"
	"time"
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
