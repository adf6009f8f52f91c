package api

import (
	"net/http"
	"slices"
	"strings"

	"github.com/keyherald/keyherald/audit"
)

// Route is one line of the API: the table below is what handlers, tests and docs/api.md go by.
type Route struct {
	Method, Path string
	// Operation is its operationId in openapi.yaml, and its name in the audit log and in metrics.
	Operation string
	// Roles are those that may call it; none means that nobody need be known.
	Roles []Role
	// OneUser routes list several users' things: helpdesk must name one with user_id.
	OneUser bool
	// Secret answers are shown once and never kept.
	Secret bool
	// Pure routes change nothing, whatever their method is.
	Pure bool
	// MaxBody is the limit of the body in bytes; 0 is 64 KiB.
	MaxBody int64

	do     func(*call) (answer, error)
	stream func(*call) *Problem
}

// maxCampaign is the limit of a campaign's body: it may name a company's users.
const maxCampaign = 16 << 20

var (
	everybody = Roles
	admins    = []Role{audit.APIAdmin}
	operators = []Role{audit.APIAdmin, audit.APIOperator}
	helpers   = []Role{audit.APIAdmin, audit.APIHelpdesk}
	auditors  = []Role{audit.APIAdmin, audit.APIAuditor}
	overview  = []Role{audit.APIAdmin, audit.APIOperator, audit.APIAuditor}
)

// Routes are all routes, in the order of docs/api.md.
func Routes() []Route {
	return []Route{
		{Method: http.MethodGet, Path: "/openapi.json", Operation: "getOpenAPIJSON", do: getDocumentJSON},
		{Method: http.MethodGet, Path: "/openapi.yaml", Operation: "getOpenAPIYAML", do: getDocumentYAML},
		{Method: http.MethodGet, Path: "/login", Operation: "getLogin", do: getLogin},
		{Method: http.MethodGet, Path: "/whoami", Operation: "getWhoami", Roles: everybody, do: getWhoami},
		{Method: http.MethodGet, Path: "/status", Operation: "getStatus", Roles: everybody, do: getStatus},

		{Method: http.MethodGet, Path: "/bot", Operation: "getBot", Roles: everybody, do: getBot},

		{Method: http.MethodGet, Path: "/users", Operation: "listUsers", Roles: overview, do: listUsers},
		{Method: http.MethodGet, Path: "/users/:user_id", Operation: "getUser", Roles: everybody, do: getUser},
		{Method: http.MethodPost, Path: "/users/:user_id/codes", Operation: "createCode", Roles: helpers, Secret: true, do: createCode},
		{Method: http.MethodGet, Path: "/users/:user_id/targets", Operation: "listTargets", Roles: everybody, do: listTargets},
		{Method: http.MethodPost, Path: "/users/:user_id/devices/:device_id/revoke", Operation: "revokeDevice", Roles: admins, do: revokeDevice},
		{Method: http.MethodPut, Path: "/users/:user_id/exclusions/:device_id", Operation: "excludeDevice", Roles: admins, do: excludeDevice},
		{Method: http.MethodDelete, Path: "/users/:user_id/exclusions/:device_id", Operation: "includeDevice", Roles: admins, do: includeDevice},

		{Method: http.MethodGet, Path: "/devices", Operation: "listDevices", Roles: everybody, OneUser: true, do: listDevices},

		{Method: http.MethodGet, Path: "/rotations", Operation: "listRotations", Roles: everybody, OneUser: true, do: listRotations},
		{Method: http.MethodPost, Path: "/rotations", Operation: "startRotation", Roles: admins, do: startRotation},
		{Method: http.MethodPost, Path: "/rotations/release", Operation: "releaseRotations", Roles: operators, do: releaseRotations},
		{Method: http.MethodGet, Path: "/rotations/:rotation_id", Operation: "getRotation", Roles: everybody, do: getRotation},
		{Method: http.MethodGet, Path: "/rotations/:rotation_id/events", Operation: "watchRotation", Roles: everybody, stream: watchRotation},
		{Method: http.MethodPost, Path: "/rotations/:rotation_id/retry", Operation: "retryRotation", Roles: []Role{audit.APIAdmin, audit.APIHelpdesk, audit.APIOperator}, do: retryRotation},
		{Method: http.MethodPost, Path: "/rotations/:rotation_id/cancel", Operation: "cancelRotation", Roles: operators, do: cancelRotation},
		{Method: http.MethodPost, Path: "/rotations/:rotation_id/repeat", Operation: "repeatRotation", Roles: operators, do: repeatRotation},

		{Method: http.MethodGet, Path: "/roster", Operation: "getRoster", Roles: overview, do: getRoster},
		{Method: http.MethodPut, Path: "/roster", Operation: "putRoster", Roles: admins, MaxBody: maxRoster, do: putRoster},
		{Method: http.MethodPut, Path: "/roster/:user_id", Operation: "addToRoster", Roles: admins, do: addToRoster},
		{Method: http.MethodDelete, Path: "/roster/:user_id", Operation: "removeFromRoster", Roles: admins, do: removeFromRoster},
		{Method: http.MethodPut, Path: "/roster/:user_id/exemption", Operation: "exemptUser", Roles: admins, do: exemptUser},
		{Method: http.MethodDelete, Path: "/roster/:user_id/exemption", Operation: "endExemption", Roles: admins, do: endExemption},
		{Method: http.MethodGet, Path: "/compliance", Operation: "getCompliance", Roles: overview, do: getCompliance},
		{Method: http.MethodGet, Path: "/compliance/users", Operation: "listStandings", Roles: everybody, OneUser: true, do: listStandings},

		{Method: http.MethodGet, Path: "/policies", Operation: "listPolicies", Roles: overview, do: listPolicies},
		{Method: http.MethodGet, Path: "/policies/current", Operation: "getPolicy", Roles: overview, do: getPolicy},
		{Method: http.MethodPut, Path: "/policies/current", Operation: "putPolicy", Roles: admins, MaxBody: maxCampaign, do: putPolicy},
		{Method: http.MethodPost, Path: "/policies/check", Operation: "checkPolicy", Roles: operators, MaxBody: maxCampaign, Pure: true, do: checkPolicy},
		{Method: http.MethodGet, Path: "/users/:user_id/policy", Operation: "explainPolicy", Roles: everybody, do: explainPolicy},

		{Method: http.MethodGet, Path: "/campaigns", Operation: "listCampaigns", Roles: overview, do: listCampaigns},
		{Method: http.MethodPost, Path: "/campaigns", Operation: "startCampaign", Roles: admins, MaxBody: maxCampaign, do: startCampaign},
		{Method: http.MethodPost, Path: "/campaigns/plan", Operation: "planCampaign", Roles: operators, MaxBody: maxCampaign, Pure: true, do: planCampaign},
		{Method: http.MethodGet, Path: "/campaigns/:campaign_id", Operation: "getCampaign", Roles: overview, do: getCampaign},
		{Method: http.MethodPatch, Path: "/campaigns/:campaign_id", Operation: "changeCampaign", Roles: admins, do: changeCampaign},
		{Method: http.MethodGet, Path: "/campaigns/:campaign_id/users", Operation: "listCampaignUsers", Roles: overview, do: listCampaignUsers},
		{Method: http.MethodGet, Path: "/campaigns/:campaign_id/events", Operation: "watchCampaign", Roles: overview, stream: watchCampaign},
		{Method: http.MethodPost, Path: "/campaigns/:campaign_id/approve", Operation: "approveCampaign", Roles: admins, do: approveCampaign},
		{Method: http.MethodPost, Path: "/campaigns/:campaign_id/pause", Operation: "pauseCampaign", Roles: operators, do: pauseCampaign},
		{Method: http.MethodPost, Path: "/campaigns/:campaign_id/resume", Operation: "resumeCampaign", Roles: operators, do: resumeCampaign},
		{Method: http.MethodPost, Path: "/campaigns/:campaign_id/abort", Operation: "abortCampaign", Roles: operators, do: abortCampaign},

		{Method: http.MethodPost, Path: "/codes", Operation: "createCodes", Roles: admins, Secret: true, MaxBody: maxRoster, do: createCodes},
		{Method: http.MethodPost, Path: "/codes/keep", Operation: "keepCodes", Roles: admins, MaxBody: maxRoster, do: keepCodes},
		{Method: http.MethodGet, Path: "/grants", Operation: "listGrants", Roles: overview, do: listGrants},
		{Method: http.MethodPost, Path: "/grants", Operation: "createGrant", Roles: admins, do: createGrant},
		{Method: http.MethodPost, Path: "/grants/:grant_id/revoke", Operation: "revokeGrant", Roles: admins, do: revokeGrant},
		{Method: http.MethodGet, Path: "/reenrollments", Operation: "listReenrollments", Roles: overview, do: listReenrollments},
		{Method: http.MethodPost, Path: "/reenrollments/:reenrollment_id/release", Operation: "releaseReenrollment", Roles: admins, do: releaseReenrollment},
		{Method: http.MethodPost, Path: "/reenrollments/:reenrollment_id/reject", Operation: "rejectReenrollment", Roles: admins, do: rejectReenrollment},

		{Method: http.MethodGet, Path: "/freeze", Operation: "getFreeze", Roles: everybody, do: getFreeze},
		{Method: http.MethodPut, Path: "/freeze", Operation: "freeze", Roles: operators, do: freeze},
		{Method: http.MethodDelete, Path: "/freeze", Operation: "thaw", Roles: operators, do: thaw},

		{Method: http.MethodGet, Path: "/audit/events", Operation: "listEvents", Roles: auditors, do: listEvents},
		{Method: http.MethodGet, Path: "/audit/events/:event_id", Operation: "getEvent", Roles: auditors, do: getEvent},
		{Method: http.MethodGet, Path: "/audit/events/:event_id/proof", Operation: "getProof", Roles: auditors, do: getProof},
		{Method: http.MethodGet, Path: "/audit/log", Operation: "getLog", Roles: auditors, do: getLog},
		{Method: http.MethodGet, Path: "/audit/checkpoint", Operation: "getCheckpoint", Roles: auditors, do: getCheckpoint},
		{Method: http.MethodGet, Path: "/audit/leaves", Operation: "watchLeaves", Roles: auditors, stream: watchLeaves},
		{Method: http.MethodGet, Path: "/audit/export", Operation: "exportLog", Roles: auditors, stream: exportLog},
		{Method: http.MethodGet, Path: "/audit/report", Operation: "getReport", Roles: auditors, stream: getReport},

		{Method: http.MethodGet, Path: "/tokens", Operation: "listTokens", Roles: admins, do: listTokens},
		{Method: http.MethodDelete, Path: "/tokens/:name", Operation: "revokeToken", Roles: admins, do: revokeToken},
	}
}

// Template is the route's path as openapi.yaml writes it.
func (r Route) Template() string {
	steps := strings.Split(r.Path, "/")
	for i, step := range steps {
		if name, ok := strings.CutPrefix(step, ":"); ok {
			steps[i] = "{" + name + "}"
		}
	}
	return strings.Join(steps, "/")
}

// Write reports whether the route changes something.
func (r Route) Write() bool { return r.Method != http.MethodGet && !r.Pure }

// allowed are those of a caller's roles that may call the route.
func (r Route) allowed(roles []Role) []Role {
	var may []Role
	for _, role := range roles {
		if slices.Contains(r.Roles, role) {
			may = append(may, role)
		}
	}
	return may
}
