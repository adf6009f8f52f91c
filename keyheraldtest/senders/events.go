package senders

import (
	"encoding/base64"
	"fmt"
	"time"
)

// What senders say, in the shapes of their documentation.

func cloudEvent(id, user, version string) string {
	return `{"specversion":"1.0","type":"com.example.rotated","source":"/kms","id":"` + id + `","subject":"keyherald/` + user +
		`/backup-key","datacontenttype":"application/json","data":{"version":"` + version + `"}}`
}

// gridData is Key Vault's, with the stray spaces that Azure's documentation shows.
func gridData(user, version string) object {
	name := "keyherald-" + user
	return object{"Id": "https://contoso-keys.vault.azure.net/secrets/" + name + "/" + version, "VaultName": "contoso-keys", "ObjectType": "Secret",
		"ObjectName ": name, "Version": " " + version, "NBF": "1559081980", "EXP": "1559082102"}
}

const vault = "/subscriptions/11111111-0000-0000-0000-000000000000/resourceGroups/keys/providers/Microsoft.KeyVault/vaults/contoso-keys"

func (w *World) gridCloudObject(id, user, version string) object {
	return object{"id": id, "source": vault, "subject": "keyherald-" + user, "type": "Microsoft.KeyVault.SecretNewVersionCreated",
		"time": w.stamp(), "data": gridData(user, version), "specversion": "1.0"}
}

// gridCloudEvent is an array of one event in the schema of CloudEvents.
func (w *World) gridCloudEvent(id, user, version string) string {
	return w.json([]any{w.gridCloudObject(id, user, version)})
}

func (w *World) gridObject(id, user, version string) object {
	return object{"id": id, "topic": vault, "subject": "keyherald-" + user, "eventType": "Microsoft.KeyVault.SecretNewVersionCreated",
		"eventTime": w.stamp(), "data": gridData(user, version), "dataVersion": "1", "metadataVersion": "1"}
}

// gridEvent is an array of one event in Event Grid's own schema.
func (w *World) gridEvent(id, user, version string) string {
	return w.json([]any{w.gridObject(id, user, version)})
}

func (w *World) gridValidation(code string) object {
	return object{"id": "2d1781af-3a4c-4d7c-bd0c-e34b19da4e66", "topic": vault, "subject": "", "eventType": "Microsoft.EventGrid.SubscriptionValidationEvent",
		"eventTime": w.stamp(), "metadataVersion": "1", "dataVersion": "1",
		"data": object{"validationCode": code, "validationUrl": "https://rp-eastus2.eventgrid.azure.net:553/eventsubscriptions/x/validate?id=1"}}
}

func (w *World) bridgeObject(id, user, version string) object {
	return object{"version": "0", "id": id, "detail-type": "Secret Label Updated", "source": "aws.secretsmanager", "account": "123456789012",
		"time": w.stamp(), "region": "eu-central-1", "resources": []any{"arn:aws:secretsmanager:eu-central-1:123456789012:secret:keyherald/" + user + "-a1b2c3"},
		"detail": object{"name": "keyherald/" + user, "labelUpdated": "AWSCURRENT", "versionId": version}}
}

func (w *World) bridgeEvent(id, user, version string) string {
	return w.json(w.bridgeObject(id, user, version))
}

// pubSubObject is a wrapped message of a push subscription.
func (w *World) pubSubObject(id, user, version string) object {
	secret := "projects/4711/secrets/keyherald-" + user
	data := w.json(object{"name": secret + "/versions/" + version, "createTime": w.stamp(), "state": "ENABLED"})
	return object{"subscription": "projects/contoso/subscriptions/keyherald", "deliveryAttempt": 1, "message": object{
		"messageId": id, "message_id": id, "publishTime": w.stamp(), "publish_time": w.stamp(), "data": base64.StdEncoding.EncodeToString([]byte(data)),
		"attributes": object{"eventType": "SECRET_VERSION_ADD", "dataFormat": "JSON_API_V1", "secretId": secret, "versionId": secret + "/versions/" + version, "timestamp": w.stamp()}}}
}

func (w *World) pubSubMessage(id, user, version string) string {
	return w.json(w.pubSubObject(id, user, version))
}

// infisicalEvent names no secret and no version; what differs between two is the time.
func (w *World) infisicalEvent(id, user, _ string) string {
	return w.json(object{"event": "secrets.modified", "timestamp": w.Now().UnixMilli(), "project": object{
		"workspaceId": id, "projectName": "keys", "environment": "prod", "secretPath": "/keyherald/" + user}})
}

// dopplerEvent of two changes is the same.
func (w *World) dopplerEvent(_, user, _ string) string {
	return w.json(object{"type": "config.secrets.update", "config": object{"name": "prd_" + user, "environment": "prd", "project": "714faaa5958"},
		"project": object{"id": "714faaa5958", "name": "keyherald"}, "workplace": object{"id": "fcd76", "name": "Pied Piper"}})
}

func (w *World) alert(id, user, version string) string {
	return w.json(object{"alert": object{"id": id, "rule": "backup-key-changed", "secret": object{"path": "keyherald/" + user + "/backup-key", "version": version}}})
}

func (w *World) incident(id, user, version string) string {
	return w.json(object{"incident": id, "secret": "keyherald/" + user + "/backup-key", "version": version})
}

func (w *World) stamp() string { return w.Now().UTC().Format(time.RFC3339) }

// What the issuers say of the senders.

func (w *World) life() object {
	return object{"iat": w.Now().Unix(), "nbf": w.Now().Unix(), "exp": w.Now().Add(time.Hour).Unix()}
}

func (w *World) entraClaims() object {
	return change(w.life(), object{"iss": entraIssuer, "aud": "api://keyherald", "appid": eventGridApp, "sub": "9f1e", "tid": "11111111-2222-3333-4444-555555555555", "ver": "1.0"})
}

func (w *World) pushClaims() object {
	return change(w.life(), object{"iss": "https://accounts.google.com", "aud": pushAudience, "azp": "113774264463038321964", "sub": "113774264463038321964",
		"email": pushAccount, "email_verified": true})
}

func (w *World) oauthClaims() object {
	return change(w.life(), object{"iss": "https://idp.example.org", "aud": []any{"keyherald", "other"}, "sub": "eventbridge", "client_id": "eventbridge", "scope": "notify"})
}

func (w *World) vaultClaims() object {
	return change(w.life(), object{"iss": "https://idp.example.org", "aud": "keyherald", "sub": "vault"})
}

// Confirmation is how SNS asks whether a subscription to the topic of the source "sns" is wanted.
func (w *World) Confirmation() Request { return text("sns", w.SignSNS(w.confirmation())) }

// Validation is how Event Grid asks that of the source "azure-header".
func (w *World) Validation() Request {
	return w.Sender("azure-header").Send(w.json([]any{w.gridValidation("512d38b6-c7b8-40c8-89fe-f46f9e9622b6")}))
}

// Batch is so many changes of one user in a request to "azure-header".
func (w *World) Batch(count int) Request {
	all := make([]any, count)
	for i := range all {
		all[i] = w.gridObject(fmt.Sprintf("many-%d", i), "alice", BatchVersion(i))
	}
	return w.Sender("azure-header").Send(w.json(all))
}

// BatchVersion is the version of a batch's event, which has no order.
func BatchVersion(i int) string { return fmt.Sprintf("%032x", (i*7919+13)%65536) }
