//go:build !goolm

package goolm

// The undefined name below is the message.
const Required = build_with_TAGS_GOOLM__type_make_build__or_go_build_tags_goolm
