package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/lib/pq"
)

// Roles are the database roles beside the owner, who runs Migrate and nothing else.
type Roles struct {
	// Writer serves: it appends to the audit log and can change neither that nor the schema.
	Writer string `yaml:"writer"`
	// Signer seals the audit log: it reads the events and adds leaves and checkpoints.
	Signer string `yaml:"signer"`
	// Auditor reads the audit log, and what the schema auditor shows of it in sentences.
	Auditor string `yaml:"auditor"`
}

// auditTables are what the log consists of. Who may do what with them is said one by one below.
const auditTables = "audit_event, audit_detail, audit_pending, audit_leaf, audit_node, audit_checkpoint, audit_epoch, audit_signing_keys, audit_redaction, audit_log, audit_opened"

// grants are the statements that give the roles what they need, and take away what they do not; they may be repeated.
// A role that is not named gets nothing.
func (r Roles) grants() []string {
	var statements []string
	if r.Writer != "" {
		writer := pq.QuoteIdentifier(r.Writer)
		statements = append(statements,
			"GRANT USAGE ON SCHEMA public TO "+writer,
			"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "+writer,
			"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO "+writer,
			"REVOKE INSERT, UPDATE, DELETE ON "+auditTables+" FROM "+writer,
			"GRANT INSERT ON audit_event, audit_detail TO "+writer,
			"REVOKE INSERT, UPDATE, DELETE ON keyherald_version, crypto_version, todevice_version, river_migration FROM "+writer,
			// For the functions that tell from the log how things stood; the views are the auditor's.
			"GRANT USAGE ON SCHEMA auditor TO "+writer,
		)
	}
	if r.Signer != "" {
		signer := pq.QuoteIdentifier(r.Signer)
		statements = append(statements,
			"GRANT USAGE ON SCHEMA public TO "+signer,
			"GRANT SELECT ON "+auditTables+", keyherald_version, crypto_version, todevice_version, database_owner TO "+signer,
			"GRANT INSERT ON audit_event, audit_detail, audit_leaf, audit_node, audit_checkpoint, audit_epoch, audit_signing_keys TO "+signer,
			"GRANT INSERT, DELETE ON audit_pending TO "+signer,
		)
	}
	if r.Auditor != "" {
		auditor := pq.QuoteIdentifier(r.Auditor)
		statements = append(statements,
			"GRANT USAGE ON SCHEMA public TO "+auditor,
			"GRANT SELECT ON "+auditTables+" TO "+auditor,
			"GRANT USAGE ON SCHEMA auditor TO "+auditor,
			"GRANT SELECT ON ALL TABLES IN SCHEMA auditor TO "+auditor,
			"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA auditor TO "+auditor,
		)
	}
	return statements
}

func (db *DB) grant(ctx context.Context, roles Roles) error {
	for _, statement := range roles.grants() {
		if _, err := db.Exec(ctx, statement); err != nil {
			return fmt.Errorf("granting rights (%s): %w; does the role exist? `keyherald migrate --print-roles` prints the SQL that makes the roles", statement, err)
		}
	}
	return nil
}

// PrintRoles is the SQL with which a DBA makes a database and its roles, and, after `keyherald migrate`, may check or
// repeat what that granted. Passwords are left to the DBA.
func (r Roles) PrintRoles(owner, database string) string {
	var b strings.Builder
	quotedOwner, quotedDatabase := pq.QuoteIdentifier(owner), pq.QuoteIdentifier(database)
	fmt.Fprintf(&b, "-- 1. As a superuser, once. Give each role a password (\\password in psql) or another way to authenticate.\n")
	for _, role := range []string{owner, r.Writer, r.Signer, r.Auditor} {
		if role != "" {
			fmt.Fprintf(&b, "CREATE ROLE %s LOGIN;\n", pq.QuoteIdentifier(role))
		}
	}
	fmt.Fprintf(&b, "CREATE DATABASE %s OWNER %s ENCODING 'UTF8' TEMPLATE template0;\n", quotedDatabase, quotedOwner)
	fmt.Fprintf(&b, "\\connect %s\nALTER SCHEMA public OWNER TO %s;\nREVOKE CREATE ON SCHEMA public FROM PUBLIC;\n\n", quotedDatabase, quotedOwner)
	fmt.Fprintf(&b, "-- 2. `keyherald migrate` as %s makes the tables and grants what follows. It may be repeated by hand.\n", owner)
	for _, statement := range r.grants() {
		b.WriteString(statement + ";\n")
	}
	return b.String()
}

// CheckWriter fails unless this connection's role may append to the audit log and may neither change it nor the schema.
func (db *DB) CheckWriter(ctx context.Context) error {
	return db.checkRole(ctx, "writer")
}

// CheckSigner fails unless this connection's role may add to the audit tree and may neither change it nor the schema.
func (db *DB) CheckSigner(ctx context.Context) error {
	return db.checkRole(ctx, "signer")
}

func (db *DB) checkRole(ctx context.Context, what string) error {
	var role string
	var super, appends, seals, changes, creates bool
	err := db.QueryRow(ctx, `SELECT current_user, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
		has_table_privilege('audit_event', 'INSERT'), has_table_privilege('audit_leaf', 'INSERT'),
		(SELECT bool_or(has_table_privilege(name, right_)) FROM unnest(ARRAY['audit_event', 'audit_detail', 'audit_leaf', 'audit_node', 'audit_checkpoint']) AS name,
			unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) AS right_),
		has_schema_privilege('public', 'CREATE')`).Scan(&role, &super, &appends, &seals, &changes, &creates)
	switch {
	case err != nil:
		return fmt.Errorf("reading the role's rights: %w", err)
	case super:
		return fmt.Errorf("%s is a superuser", role)
	case changes || creates:
		return fmt.Errorf("%s could change the audit log or the schema: it is no %s", role, what)
	case !appends:
		return fmt.Errorf("%s may not append to the audit log", role)
	case what == "signer" && !seals:
		return fmt.Errorf("%s may not add to the audit tree: it is no signer", role)
	case what == "writer" && seals:
		return fmt.Errorf("%s could add to the audit tree, and so seal what nobody did: it is no writer", role)
	}
	return nil
}
