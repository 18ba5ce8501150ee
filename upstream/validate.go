package upstream

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"packship/schema"
)

const (
	maxSubTID      = 50 // of one call
	maxCarrierName = 20 // in characters
	// maxReported is how often one rule is reported as broken for the parts of
	// one field. A field can have as many parts as a record has bytes.
	maxReported = 10
)

var (
	waybillPattern = regexp.MustCompile(`^[A-Z0-9-]{5,35}$`)
	longNumber     = regexp.MustCompile(`^[0-9]{8,}$`)
)

// Validate returns every rule that the event breaks, those that it breaks by
// the types of its fields included, in the order of the rules. An event that
// breaks one must not be sent: each call is paid for.
func (u *Upstream) Validate(p *schema.Packed) []schema.Violation {
	v := validator{Packed: p, carriers: u.cfg.Carriers, omniChannel: u.omniChannel[p.ShopID], broken: slices.Clone(p.Violations)}
	v.shop(u.accountOf(p.ShopID) != nil || u.cfg.UnknownShop == UnknownSkip)
	v.tid()
	v.waybill()
	v.carrier()
	if !v.pattern(u.cfg.WaybillCheck) {
		u.metrics.mismatches.Inc()
		u.cfg.Logger.Debug("waybill number does not look like its carrier's", "tid", p.TID, "company_code", p.CompanyCode)
	}
	v.split()
	v.addresses()
	v.features()
	v.origin()
	v.parcel()
	slices.SortStableFunc(v.broken, func(a, b schema.Violation) int { return strings.Compare(a.Rule, b.Rule) })
	return v.broken
}

// validator collects the rules that an event breaks.
type validator struct {
	*schema.Packed
	carriers *Catalogue
	// omniChannel is true if the shop must name the store that ships.
	omniChannel bool
	broken      []schema.Violation
}

func (v *validator) violate(rule, field, format string, args ...any) {
	v.broken = append(v.broken, schema.Violation{Rule: rule, Field: field, Message: fmt.Sprintf(format, args...)})
}

// mistyped reports whether the field was refused for its type. Its value is not
// known then, so that nothing more can be said of it.
func (v *validator) mistyped(field string) bool {
	return slices.ContainsFunc(v.Violations, func(b schema.Violation) bool { return b.Field == field })
}

func (v *validator) shop(served bool) {
	switch {
	case v.mistyped("shop_id"):
	case !schema.ValidShopID(v.ShopID):
		v.violate("V01", "shop_id", "shop_id must be 1 to 64 letters, digits, _ or -, got %q", cut(v.ShopID, 60))
	case !served:
		v.violate("V02", "shop_id", "shop %s is in no account", v.ShopID)
	}
}

func (v *validator) tid() {
	if !v.mistyped("tid") && !schema.ValidID(v.TID) {
		v.violate("V03", "tid", "tid must be a whole number from 1 to 9223372036854775807, got %q", cut(v.TID, 60))
	}
}

// waybill checks the waybill number by itself.
func (v *validator) waybill() {
	switch {
	case v.mistyped("out_sid"):
	case v.OutSID == "":
		v.violate("V04", "out_sid", "out_sid, the waybill number, is missing")
	default:
		if !waybillPattern.MatchString(v.OutSID) {
			v.violate("V05", "out_sid", "out_sid must be one waybill number of 5 to 35 letters, digits and hyphens, got %q", cut(v.OutSID, 60))
		}
		if v.carriers.byCode[v.OutSID] != nil {
			v.violate("V11", "out_sid", "out_sid %s is a carrier code: are out_sid and company_code swapped?", v.OutSID)
		}
		if v.OutSID == v.TID {
			v.violate("V11", "out_sid", "out_sid is the order id, not a waybill number")
		}
	}
}

// carrier checks the carrier's code or name.
func (v *validator) carrier() {
	code := v.CompanyCode
	if v.mistyped("company_code") {
		return
	}
	if code == "" {
		v.violate("V08", "company_code", "company_code is missing")
		return
	}
	switch known := v.carriers.byCode[code]; {
	case known != nil && known.disabled:
		v.violate("V09", "company_code", "carrier %s is no longer taken by the platform", code)
	case known != nil && !known.selfContact:
		v.violate("V09", "company_code", "carrier %s does not ship parcels that the seller hands over", code)
	case known != nil:
	case code == carrierOther:
		v.violate("V09", "company_code", "OTHER is no carrier: give the carrier's Chinese name")
	case isChineseName(code):
		if n := utf8.RuneCountInString(code); n > maxCarrierName {
			v.violate("V10", "company_code", "a carrier's name must have at most %d characters, got %d", maxCarrierName, n)
		}
	default:
		v.violate("V09", "company_code", "%q is neither a code of the carrier catalogue nor a Chinese name", cut(code, 60))
	}
	switch {
	case longNumber.MatchString(code):
		v.violate("V11", "company_code", "company_code is a number: are out_sid and company_code swapped?")
	case code == v.OutSID:
		v.violate("V11", "company_code", "company_code is the waybill number")
	case code == v.TID:
		v.violate("V11", "company_code", "company_code is the order id")
	case v.carriers.byCode[code] == nil && v.carriers.byCode[v.OutSID] != nil && waybillPattern.MatchString(code):
		v.violate("V11", "company_code", "company_code looks like a waybill number: are out_sid and company_code swapped?")
	}
}

// isChineseName reports whether s can be the name of a carrier that has no code:
// printable, with at least one Chinese character.
func isChineseName(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return unicode.Is(unicode.Han, r) }) &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// pattern compares the waybill number with the carrier's pattern. It returns
// false if they do not match and that is only to be noted.
func (v *validator) pattern(check WaybillCheck) bool {
	carrier := v.carriers.byCode[v.CompanyCode]
	if carrier == nil || carrier.pattern == nil || !waybillPattern.MatchString(v.OutSID) || carrier.pattern.MatchString(v.OutSID) {
		return true
	}
	if carrier.check != "" {
		check = carrier.check
	}
	if check == CheckStrict {
		v.violate("V06", "out_sid", "out_sid %s does not match the pattern %s of carrier %s", v.OutSID, carrier.pattern, carrier.code)
	}
	return check != CheckWarn
}

// split checks is_split and the list of sub-orders.
func (v *validator) split() {
	if v.IsSplit != 0 && v.IsSplit != 1 {
		v.violate("V12", "is_split", "is_split must be 0 or 1, got %d", v.IsSplit)
	}
	if !v.mistyped("is_split") && !v.mistyped("sub_tid") {
		switch {
		case v.IsSplit == 1 && len(v.SubTID) == 0:
			v.violate("V13", "sub_tid", "sub_tid is missing: with is_split 1 it must list the sub-orders of the parcel")
		case v.IsSplit == 0 && len(v.SubTID) > 0:
			v.violate("V13", "is_split", "sub_tid is only allowed with is_split 1")
		}
	}
	if v.mistyped("sub_tid") || len(v.SubTID) == 0 {
		return
	}
	if n := len(v.SubTID); n > maxSubTID {
		v.violate("V14", "sub_tid", "sub_tid must list at most %d sub-orders, got %d", maxSubTID, n)
	}
	seen := make(map[string]bool, len(v.SubTID))
	before := len(v.broken)
	for i, id := range v.SubTID {
		if len(v.broken)-before == maxReported {
			break
		}
		switch {
		case !schema.ValidID(id):
			v.violate("V14", "sub_tid", "sub_tid item %d must be a whole number from 1 to 9223372036854775807 without spaces, got %q", i+1, cut(id, 60))
		case seen[id]:
			v.violate("V14", "sub_tid", "sub_tid item %d is there a second time: %s", i+1, id)
		}
		seen[id] = true
	}
}

// addresses checks the address book ids, and the API edition with them.
func (v *validator) addresses() {
	for _, f := range []struct{ field, id string }{{"sender_id", v.SenderID}, {"cancel_id", v.CancelID}} {
		if f.id != "" && !v.mistyped(f.field) && !schema.ValidID(f.id) {
			v.violate("V19", f.field, "%s must be a whole number from 1 to 9223372036854775807, got %q", f.field, cut(f.id, 60))
		}
	}
	if v.VVType < 0 || v.VVType > 4 {
		v.violate("V18", "vvtype", "vvtype must be a number from 1 to 4, got %d", v.VVType)
	}
}

// features checks the feature field.
func (v *validator) features() {
	if v.mistyped("feature") {
		return
	}
	var f feature
	if v.Feature != "" {
		var errs []featureError
		f, errs = parseFeature(v.Feature)
		errs = append(errs, f.miscounted(v.pieces())...)
		slices.SortStableFunc(errs, func(a, b featureError) int { return a.pos - b.pos })
		for _, e := range errs[:min(len(errs), maxReported)] {
			v.violate("V15", "feature", "%s", e)
		}
		v.subOrders(&f)
	}
	switch {
	case f.storeID != 0 && f.storeType == 0:
		v.violate("V17", "feature", "retailStoreId needs retailStoreType beside it")
	case f.storeType != 0 && f.storeID == 0:
		v.violate("V17", "feature", "retailStoreType needs retailStoreId beside it")
	case f.storeID == 0 && v.omniChannel:
		v.violate("V17", "feature", "shop %s is an omni-channel shop: feature must name retailStoreId and retailStoreType", v.ShopID)
	}
}

// subOrders checks that the feature speaks of what is in the parcel: with a split
// of the parts that are listed, else of the order's items, if the event has them.
func (v *validator) subOrders(f *feature) {
	var known func(oid string) bool
	var list string
	switch {
	case v.mistyped("is_split"):
		return
	case v.IsSplit == 1:
		if len(v.SubTID) == 0 || v.mistyped("sub_tid") {
			return
		}
		parts := make(map[string]bool, len(v.SubTID))
		for _, id := range v.SubTID {
			parts[id] = true
		}
		known, list = func(oid string) bool { return parts[oid] }, "sub_tid"
	case len(v.Items) == 0:
		return
	default:
		pieces := v.pieces()
		known, list = func(oid string) bool { _, ok := pieces[oid]; return ok }, "items"
	}
	for _, oid := range f.missingOIDs(known) {
		v.violate("V16", "feature", "%s", featureError{oid.pos, "sub-order " + oid.id + " is not in " + list})
	}
}

// pieces returns how many pieces the order's items have, by their ids; 0 for what
// the event does not say, or says twice, as where the parts of a set are listed
// under one id.
func (v *validator) pieces() map[string]int {
	pieces := make(map[string]int, len(v.Items))
	for _, item := range v.Items {
		n := item.Quantity
		if _, twice := pieces[item.OID]; twice {
			n = 0
		}
		pieces[item.OID] = n
	}
	return pieces
}
