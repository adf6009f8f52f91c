package policy

import (
	"encoding/json"
	"fmt"
	"strings"
)

// AWSUser stands for the user's name in a policy of AWS: the tag `matrix_user` of the principal.
const AWSUser = "${aws:PrincipalTag/matrix_user}"

type document struct {
	Version   string
	Statement []statement
}

type statement struct {
	Sid      string
	Effect   string
	Action   []string
	Resource []string
}

// AWSServer is the identity policy of the server's principal. where is the ARN's middle: partition, region and account,
// such as aws:secretsmanager:eu-central-1:111122223333.
func AWSServer(where string, place Place) string {
	statements := []statement{
		{"Metadata", "Allow", []string{"secretsmanager:DescribeSecret"}, []string{arn(where, at(place.Path, "*"))}},
		{"NoValues", "Deny", []string{"secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue"}, []string{"*"}},
	}
	return encode(statements)
}

// AWSDevice is the identity policy of a managed device's principal. user is a name, or AWSUser.
func AWSDevice(where string, place Place, user string) string {
	key := []string{arn(where, at(place.Path, user))}
	actions := []string{"secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue", "secretsmanager:ListSecretVersionIds"}
	if place.Write {
		actions = append(actions, "secretsmanager:CreateSecret", "secretsmanager:PutSecretValue", "secretsmanager:TagResource",
			"secretsmanager:UntagResource", "secretsmanager:UpdateSecretVersionStage")
	}
	statements := []statement{{"OwnKey", "Allow", actions, key}}
	if place.RecoveryPath != "" {
		actions := []string{"secretsmanager:CreateSecret"}
		if place.RecoveryRead {
			actions = append(actions, "secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue")
		}
		var keys []string
		for _, path := range place.recovery(user, "*") {
			keys = append(keys, arn(where, path))
		}
		statements = append(statements, statement{"RecoveryKey", "Allow", actions, keys})
	}
	return encode(statements)
}

// arn ends in what AWS puts after a name: a dash and six characters.
func arn(where, path string) string {
	return fmt.Sprintf("arn:%s:secret:%s-??????", where, path)
}

func encode(statements []statement) string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	// Nothing of it can fail to be encoded.
	_ = encoder.Encode(document{"2012-10-17", statements})
	return b.String()
}
