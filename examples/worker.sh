#!/bin/bash
# A payment worker.  Connects as libpq does (PGHOST, PGUSER, PGDATABASE, ...).
set -uo pipefail
stopping=
trap 'stopping=1' TERM

# Runs the SQL in standard input; -v NAME=VALUE is :'NAME' there.
run() {
  psql -XqAt -v ON_ERROR_STOP=1 -v VERBOSITY=verbose "$@"
}

claim() {
  run -v worker="bash $$" <<'SQL'
SELECT task_id, token, phase, null_compensation, idempotency_key,
       regexp_replace(idempotency_key, '/compensation$', ''), payload #>> '{input,amount}'
FROM coord.task_claim('payments', worker => :'worker', lease => '1 min', timeout => '5 s');
SQL
}

# Outside of coord's database, so it may happen twice: the key makes that harmless.
pay() {
  case $phase,$null_compensation in
    action,*) run -d provider -v key="$key" -v amount="$amount" <<<"CALL charge_card(:'key', :'amount')" ;;
    # else nobody can have charged
    compensation,f) run -d provider -v key="$key" -v charge="$charge_key" <<<"CALL refund_card(:'key', :'charge')" ;;
  esac
}

complete() {
  run -v task="$task" -v token="$token" -v key="$key" <<'SQL'
SELECT coord.task_complete(:task, :token, jsonb_build_object('payment', :'key'));
SQL
}

fail() {
  run -v task="$task" -v token="$token" -v error="$1" -v retryable="$2" <<'SQL'
SELECT coord.task_fail(:task, :token, :'error', retryable => :retryable, retry_in => '10 s');
SQL
}

while [ -z "$stopping" ]; do
  if ! claimed=$(claim); then # the server is away
    sleep 1
    continue
  fi
  [ -n "$claimed" ] || continue
  IFS='|' read -r task token phase null_compensation key charge_key amount <<<"$claimed"
  if error=$(pay 2>&1); then
    outcome=$(complete 2>&1)
  else
    retryable=true # unless the provider refuses, for it would again
    [[ $error != *P0001:* ]] || retryable=false
    outcome=$(fail "${error%%$'\n'*}" $retryable 2>&1)
  fi || # ZC001: another worker has it now; ZC011: its saga was cancelled; else the lease's end brings it back
    echo "$key: ${outcome%%$'\n'*}" >&2
done
