#!/usr/bin/env bash
# Checks what only a machine with a GPU can show about this checkout, in at most 525 seconds. Runs
# the steps of test/gpu/steps.sh, each in its own process with a time limit. See
# docs/guides/gpu-check.md.
#
#   gpu-check.sh [--archive FILE] [--rebuild] [--only STEP,...] [--seconds N]
#                [--rehearse FOLDER [--break hang,crash,fail]]
#   gpu-check.sh --list    the steps with their limits in seconds
#
# Needs bash and coreutils. Node and the programs come from the archive that `npm run gpu:pack`
# builds (--archive, or build-gpu/diffqkv-gpu.tar.xz if it exists). Without an archive, or with
# `--archive none`, the script uses this checkout's build.
#
#   --rebuild    compiles the programs and the module from this checkout's sources
#   --only       runs only these steps
#   --seconds    the limit of the whole run
#   --rehearse   runs without a GPU: uses the replacements of test/gpu/stand_in, and
#                gpu_driver_emulated and diffqkv-test.node from FOLDER (build-cmake of a checkout)
#   --break      adds steps that hang, crash and fail
#
# The results go to the folder in OUT (default: bench/results/gpu), at most 8 files: summary.txt,
# rewritten after each step; log.txt, the steps' output; and the steps' data as JSON lines or CSV.
set -u
export LC_ALL=C

GRACE=5                   # seconds from SIGTERM to SIGKILL
MARGIN=1                  # seconds for the script's own work between two steps
HEAD_BYTES=$((640 << 10)) # log.txt keeps the head and the tail of a step's output
TAIL_BYTES=$((192 << 10))
DATA_BYTES=$((15 << 20)) # the limit of each other file

self=$(readlink -f "${BASH_SOURCE[0]}")
root=$(dirname "$(dirname "$(dirname "$self")")")

source "$root/test/gpu/steps.sh"

milliseconds() { echo $((${EPOCHREALTIME/./} / 1000)); }

usage() {
  sed -n '2,/^set -u/{/^set -u/d; s/^# \{0,1\}//p}' "$self" >&2
  exit 2
}

list_steps() {
  awk -v extra=$((GRACE + MARGIN)) '{ print; total += $2 + extra } END { print "total", total }' <<<"$STEPS"
}

summary() {
  local i
  echo "gpu-check: $title, $((($(milliseconds) - started + 500) / 1000)) of $seconds s"
  for i in "${!names[@]}"; do
    printf '%-13s %-18s %6s s  %s\n' "${names[i]}" "${outcomes[i]}" "${times[i]}" "${lines[i]}"
  done
}

# NAME OUTCOME MILLISECONDS LINE: adds a step to the summary, or replaces the last entry of the same name.
record() {
  local i=${#names[@]}
  if ((i > 0)) && [ "${names[i - 1]}" = "$1" ]; then i=$((i - 1)); fi
  names[i]=$1 outcomes[i]=$2 times[i]=$(($3 / 1000)).$(($3 % 1000 / 100)) lines[i]=${4:0:800}
  summary >"$out/summary.txt"
}

# Ends the processes that a step left behind, even in another session or process group.
sweep() { # ID
  local file
  for file in $(grep -lzsx "CHECK_STEP_ID=$1" /proc/[0-9]*/environ); do
    kill -KILL "${file//[^0-9]/}" 2>/dev/null
  done
}

# Appends standard input to log.txt as it arrives, up to HEAD_BYTES, and drops the rest.
keep_head() {
  stdbuf -o0 head -c $HEAD_BYTES >>"$out/log.txt"
  cat >/dev/null
}

keep_tail() { # LOG
  local rest=$(($(stat -c %s "$1") - HEAD_BYTES))
  if ((rest <= 0)); then return; fi
  if ((rest > TAIL_BYTES)); then
    printf '\n[... %d bytes left out ...]\n' $((rest - TAIL_BYTES)) >>"$out/log.txt"
    rest=$TAIL_BYTES
  fi
  tail -c "$rest" "$1" >>"$out/log.txt"
}

# Writes the data lines of a step's output to a separate file.
save_data() { # NAME LOG
  case $1 in
    correctness | timings | limits | models) set -- "$2" "$1.jsonl" '^{' ;;
    ncu) set -- "$2" ncu.csv '^"' ;;
    *) return ;;
  esac
  if grep -qa "$3" "$1"; then grep -a "$3" "$1" | head -c $DATA_BYTES >"$out/$2"; fi
}

outcome_of() { # STATUS LIMIT MILLISECONDS LOG
  if (($1 == 0)); then
    echo passed
  elif (($1 == SKIP_STATUS)) && grep -q '^SKIPPED: ' "$4"; then
    echo SKIPPED
  elif (($1 == 124 || $1 == 137)) && (($3 >= $2 * 1000)); then
    echo "TIMEOUT ($2 s)"
  elif (($1 == INCOMPLETE_STATUS)); then
    echo INCOMPLETE
  elif (($1 > 128)) && kill -l $(($1 - 128)) >/dev/null 2>&1; then
    echo "CRASHED SIG$(kill -l $(($1 - 128)))"
  else
    echo "FAILED ($1)"
  fi
}

run_step() { # NAME LIMIT
  local name=$1 limit=$2 log=$work/$1.log id=$$.$1 left status before begun took line outcome readers i
  left=$(((deadline - $(milliseconds)) / 1000 - GRACE - MARGIN))
  if ((left < limit)); then limit=$left; fi
  if [ -n "$stopped" ]; then
    record "$name" SKIPPED 0 "stopped by $stopped"
    return
  elif ((limit < 2)); then
    record "$name" SKIPPED 0 'no time left'
    return
  fi
  record "$name" running 0 "at most $limit s"
  printf '\n==== %s (at most %s s)\n' "$name" "$limit" | tee -a "$out/log.txt"
  rm -f "$work"/{output,kept}
  mkfifo "$work"/{output,kept}
  keep_head <"$work/kept" &
  readers=$!
  tee -p "$log" "$work/kept" <"$work/output" &
  readers+=" $!"
  begun=$(milliseconds)
  CHECK_STEP_ID=$id CHECK_STEP_SECONDS=$limit \
    timeout -k $GRACE "$limit" bash "$self" --step "$name" </dev/null >"$work/output" 2>&1 &
  running=$!
  while :; do
    before=$signals
    wait $running
    status=$?
    if ((signals == before)); then break; fi # else a signal to this script has ended `wait`, not the step
  done
  running=
  took=$(($(milliseconds) - begun))
  sweep "$id"
  # The readers end with the last writer. A writer that cannot be killed must not block the run.
  for ((i = 0; i < 10; i++)); do
    kill -0 $readers 2>/dev/null || break
    sleep 0.1
  done
  kill $readers 2>/dev/null
  wait $readers 2>/dev/null
  keep_tail "$log"
  save_data "$name" "$log"

  outcome=$(outcome_of "$status" "$limit" $took "$log")
  line=
  if [ "$outcome" = SKIPPED ]; then
    line=$(sed -n 's/^SKIPPED: //p' "$log" | tail -1)
  elif has "result_$name"; then
    line=$("result_$name" "$log") || outcome=${outcome/#passed/FAILED (no result)}
  fi
  if [ -z "$line" ] && [ "$outcome" != passed ]; then line=$(tail -c 1000 "$log" | grep -a '[^ ]' | tail -1); fi
  record "$name" "$outcome" $took "$line"
  printf '==== %s: %s, %s s\n' "$name" "$outcome" "${times[-1]}" | tee -a "$out/log.txt"
}

stop() { # SIGNAL
  stopped=$1
  ((++signals))
  if [ -n "$running" ]; then kill "$running" 2>/dev/null; fi
}

finish() {
  sweep "$$\..*"
  rm -rf "$work"
}

# The driver's timings as a table: microseconds, and percentages of the read bandwidth and of the
# mma.sync rate.
timing_table() {
  [ -s "$out/timings.jsonl" ] || return
  awk '
    function field(name) {
      if (!match($0, "\"" name "\": (\"[^\"]*\"|[^,}]*)")) return ""
      return substr($0, RSTART + length(name) + 4, RLENGTH - length(name) - 4)
    }
    function percent(share) { return share == "" ? "" : sprintf("%.0f %%", 100 * share) }
    BEGIN { printf "%12s %8s %8s\n", "us", "of read", "of mma" }
    field("us") != "" {
      name = field("case")
      gsub("\"", "", name)
      printf "%12.1f %8s %8s  %s\n", field("us"), percent(field("ofRead")), percent(field("ofMma")), name
    }' "$out/timings.jsonl"
}

# The archive's programs use the machine's libraries if it has them, else the archive's.
find_libraries() {
  local file
  export CHECK_LIBRARIES=
  for file in bin/node build/Release/diffqkv.node build-cmake/gpu_driver; do
    if [ -d "$CHECK_KIT/system" ] && ldd "$CHECK_KIT/$file" 2>&1 | grep -q 'not found'; then
      CHECK_LIBRARIES=$CHECK_KIT/system
    fi
  done
}

find_gpu() {
  if timeout -k $GRACE 20 nvidia-smi -L >/dev/null 2>&1 || [ -e /dev/nvidia0 ]; then return; fi
  echo 'gpu-check: SKIPPED: no GPU here (nvidia-smi does not answer)'
  exit 0
}

main() {
  local archive='' rebuild='' only='' rehearse='' broken='' name limit i
  seconds=$(list_steps | sed -n 's/^total //p')
  while (($# > 0)); do
    case $1 in
      --rebuild) rebuild=rebuild ;;
      --archive | --only | --seconds | --rehearse | --break)
        (($# > 1)) || usage
        case $1 in
          --archive) archive=$2 ;;
          --only) only=$2 ;;
          --seconds) [[ $2 =~ ^[0-9]+$ ]] || usage && seconds=$2 ;;
          --rehearse) rehearse=$(readlink -f "$2") ;;
          --break) broken=$2 ;;
        esac
        shift
        ;;
      *) usage ;;
    esac
    shift
  done
  started=$(milliseconds)
  deadline=$((started + seconds * 1000))
  names=() outcomes=() times=() lines=() running='' stopped='' signals=0
  out=${OUT:-$root/bench/results/gpu}
  PATH=$PATH:/usr/local/nvidia/bin:/usr/local/cuda/bin:$(printf '%s:' /opt/nvidia/nsight-compute/*)
  export PATH CHECK_DEVICE=cuda CHECK_REHEARSAL=$rehearse
  if [ -n "$rehearse" ]; then
    PATH=$root/test/gpu/stand_in:$PATH CHECK_DEVICE=emulated
    export DIFFQKV_MODULE=$rehearse/diffqkv-test.node DIFFQKV_TEST_REDUCED=1
  else
    find_gpu
  fi
  # If no process has the GPU open, its driver may shut it down and start it again for each process.
  if [ -r /dev/nvidia0 ]; then exec 9</dev/nvidia0; fi
  mkdir -p "$out" || exit 1
  rm -f "$out"/{summary.txt,log.txt,correctness.jsonl,timings.jsonl,limits.jsonl,models.jsonl,ncu.csv}
  work=$(mktemp -d) || exit 1
  trap finish EXIT
  trap 'stop SIGINT' INT
  trap 'stop SIGTERM' TERM
  title=$(cat "$root/commit" 2>/dev/null || git -C "$root" describe --always --dirty 2>/dev/null ||
    echo 'unknown commit')
  title+=", $(date -u +%FT%TZ)${rehearse:+, a rehearsal without a GPU}"

  # The kit: the folder with Node and the programs.
  local usual=$root/build-gpu/diffqkv-gpu.tar.xz
  if [ -z "$archive" ] && [ ! -e "$root/bin/node" ] && [ -e "$usual" ]; then archive=$usual; fi
  archive=${archive/#none/}
  export CHECK_WORK=$work CHECK_ARCHIVE=${archive:+$(readlink -f "$archive")} CHECK_KIT=$root
  if [ -n "$archive" ]; then
    CHECK_KIT=$work/kit
    mkdir "$CHECK_KIT"
  fi
  export CHECK_DRIVER=$CHECK_KIT/build-cmake/gpu_driver CHECK_DEVICE_CHECK=$CHECK_KIT/build-cmake/device_check
  if [ -n "$rehearse" ]; then
    CHECK_DRIVER=$rehearse/gpu_driver_emulated CHECK_DEVICE_CHECK=$root/test/gpu/stand_in/device_check
  fi

  while read -r name limit; do
    if [ "$name" != unpack ] && [ -n "$only" ] && [[ ",$only," != *",$name,"* ]]; then continue; fi
    run_step "$name" "$limit"
    if [ "$name" = unpack ]; then
      if [ -e "$CHECK_KIT/commit" ]; then
        title=${title/#unknown commit/archive of $(cat "$CHECK_KIT/commit")}
      fi
      if [ -n "$rebuild" ]; then run_step rebuild 240; fi
      find_libraries
      if ! own timeout 5 "$CHECK_DRIVER" list >/dev/null 2>&1; then run_step build_driver 150; fi
    fi
    case ,$broken, in *,"$(broken_after "$name")",*) run_step "break_$(broken_after "$name")" 3 ;; esac
  done <<<"$STEPS"

  printf '\n'
  timing_table
  summary | tee "$out/summary.txt"
  case " ${outcomes[*]} " in *TIMEOUT* | *CRASHED* | *FAILED* | *INCOMPLETE*) exit 1 ;; esac
  # The machine step and the unpack step by themselves prove nothing.
  for i in "${!names[@]}"; do
    case ${names[i]}:${outcomes[i]} in machine:* | unpack:*) ;; *:passed) exit 0 ;; esac
  done
  echo 'gpu-check: no step passed'
  exit 1
}

# The steps that --break adds, each after the named one.
broken_after() {
  case $1 in
    unpack) echo hang ;;
    correctness) echo crash ;;
    fixtures) echo fail ;;
    *) echo none ;;
  esac
}

case ${1-} in
  --list) list_steps ;;
  --step) "step_$2" ;;
  *) main "$@" ;;
esac
