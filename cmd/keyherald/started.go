package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/notice"
	"github.com/keyherald/keyherald/postgres"
)

// started audits that a replica starts, and with what: names alone, no addresses and no secrets. The admin room is told as well.
func started(ctx context.Context, db *postgres.DB, c config, identity appservice.Identity, notices *notice.Notices) error {
	var sources []audit.SourceName
	for _, name := range slices.Sorted(maps.Keys(c.Sources)) {
		sources = append(sources, audit.SourceName(name))
	}
	var systems []audit.KMSName
	for _, name := range slices.Sorted(maps.Keys(c.KMS)) {
		systems = append(systems, audit.KMSName(name))
	}
	detail := audit.Detail{audit.ID("software_version", softwareVersion()), audit.ID("bot", identity.UserID),
		audit.Fingerprint("bot_master_key_sha256", identity.MasterKey()), audit.IDs("sources", sources), audit.IDs("kms", systems),
		audit.Flag("development", c.Development), audit.Number("storm_percent", c.Storm.Limit.Percent), audit.Number("storm_users", c.Storm.Limit.Users)}
	if c.Audit.on() {
		sinks := make([]audit.SinkName, len(c.Audit.Sinks))
		for i, s := range c.Audit.Sinks {
			sinks[i] = audit.SinkName(s.Name)
		}
		detail = append(detail, audit.ID("log", audit.LogName(c.Audit.Name)), audit.IDs("sinks", sinks))
	}
	return db.Txn(ctx, func(ctx context.Context) error {
		if err := db.Append(ctx, serverEvent(audit.ServerStarted, audit.Accepted, detail)); err != nil {
			return err
		}
		return notices.TellAdmins(ctx, "started/"+uuid.NewString(), audit.NoticeServerStarted, notice.Started(string(softwareVersion()), string(hostName())))
	})
}

// stopped audits that a replica ends: in order, or because of why.
func stopped(ctx context.Context, db *postgres.DB, why error) error {
	event := serverEvent(audit.ServerStopped, audit.Accepted, nil)
	if why != nil {
		event.Outcome, event.Detail = audit.Failed, audit.Detail{audit.Word("problem", audit.ProblemError)}
	}
	return errors.Join(why, db.Append(ctx, event))
}

func serverEvent(action audit.Action, outcome audit.Outcome, detail audit.Detail) audit.Event {
	return audit.Event{Time: time.Now(), Actor: localActor(), Action: action, Subject: audit.OfServer(), Outcome: outcome, Detail: detail}
}
