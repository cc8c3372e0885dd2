#!/usr/bin/env bash
# What only a machine with a GPU can tell about this checkout, in at most 525 seconds. See docs/guides/gpu-check.md.
#
#   gpu-check.sh [--archive FILE] [--rebuild] [--only STEP,...] [--seconds N] [--rehearse FOLDER [--break hang,crash,fail]]
#   gpu-check.sh --list          the steps with their limits in seconds
#
# It needs bash and coreutils. Node and the programs come from the archive that `npm run gpu:pack` makes (--archive, or
# build-gpu/diffqkv-gpu.tar.xz if it is there); without one the script takes what this checkout has built.
#
#   --rebuild    compiles the programs and the module from this checkout's sources, on top of the archive
#   --only       runs these steps only
#   --seconds    the limit of the whole run
#   --rehearse   runs without a GPU: the stand-ins of test/gpu/stand_in, and gpu_driver_emulated and diffqkv-test.node of
#                FOLDER (build-cmake of a checkout). --break adds steps that hang, crash and fail.
#
# The results go to the folder that OUT names (default: bench/results/gpu), at most 8 files: summary.txt, rewritten after
# each step; log.txt, what the steps printed; the steps' data as JSON lines or CSV.
set -u
export LC_ALL=C

GRACE=5                   # seconds from SIGTERM to SIGKILL
MARGIN=1                  # seconds for what the script does between two steps
HEAD_BYTES=$((640 << 10)) # what log.txt keeps of a step's output: the head and the tail
TAIL_BYTES=$((192 << 10))
DATA_BYTES=$((15 << 20)) # the limit of each other file
SKIP_STATUS=77       # of a step that cannot run here
INCOMPLETE_STATUS=4 # of gpu_driver if the time did not suffice for all cases

# Each step has its limit, GRACE and MARGIN: the sum is the limit of the whole run.
STEPS='machine 6
unpack 10
device_layer 8
correctness 52
timings 52
limits 34
fixtures 15
models 38
jest 70
memcheck 70
racecheck 26
synccheck 22
ncu 44'

self=$(readlink -f "${BASH_SOURCE[0]}")
root=$(dirname "$(dirname "$self")")

milliseconds() { echo $((${EPOCHREALTIME/./} / 1000)); }
has() { command -v "$1" >/dev/null 2>&1; }

# ---- The steps. Each runs in a process of its own: `gpu-check.sh --step NAME` with the CHECK_* variables of main().

skip() {
  echo "SKIPPED: $*"
  exit $SKIP_STATUS
}

need() { has "$1" || skip "${2:-no $1 on PATH}"; }
need_file() { [ -e "$1" ] || skip "${1#"$CHECK_KIT"/} is not built"; }

# Runs a program of the archive. It may need the archive's libraries; other programs must not see them.
own() { ${CHECK_LIBRARIES:+env LD_LIBRARY_PATH="$CHECK_LIBRARIES"} "$@"; }

# The last seconds of a step belong to the program, which then ends by itself.
driver_seconds() { echo $((CHECK_STEP_SECONDS > 10 ? CHECK_STEP_SECONDS - 4 : CHECK_STEP_SECONDS - 1)); }

step_machine() {
  nvidia-smi --query-gpu=name,memory.total,driver_version,compute_cap,clocks.sm,clocks.max.sm,clocks.mem,power.limit,ecc.mode.current,temperature.gpu \
    --format=csv,noheader
  local status=$?
  echo "$(uname -srm); $(nproc) CPUs; $(awk '/MemTotal/ { printf "%d GiB", $2 / 1048576 }' /proc/meminfo)"
  grep -m1 'model name' /proc/cpuinfo
  local tool
  for tool in 'nvcc --version' 'ncu --version' 'compute-sanitizer --version' 'python3 --version' 'g++ --version' 'cmake --version' 'node --version'; do
    if has "${tool%% *}"; then
      echo "$tool: $(timeout 3 $tool 2>&1 | grep -iE '[0-9]+\.[0-9]+' | tail -1)"
    else
      echo "$tool: not on PATH"
    fi &
  done
  wait
  return $status
}

step_unpack() {
  [ -n "$CHECK_ARCHIVE" ] || skip 'no archive: takes what is built here'
  echo "$(stat -c %s "$CHECK_ARCHIVE") bytes in $CHECK_ARCHIVE"
  if has xz; then
    tar -xJf "$CHECK_ARCHIVE" -C "$CHECK_KIT" || exit 1
  else # Python has its own decompressor
    need python3 'neither xz nor python3 on PATH'
    python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1], "r:xz").extractall(sys.argv[2])' "$CHECK_ARCHIVE" "$CHECK_KIT" || exit 1
  fi
  echo "archive of commit $(cat "$CHECK_KIT/commit")"
  # The checkpoints are tracked files, so they are not in the archive.
  local path
  for path in models test/fixtures; do
    if [ -e "$root/$path" ] && [ ! -e "$CHECK_KIT/$path" ]; then ln -s "$root/$path" "$CHECK_KIT/$path"; fi
  done
  (cd "$root" && sha256sum --check --quiet "$CHECK_KIT/sources.sha256" 2>/dev/null | sed 's/: FAILED.*//; s/^/differs from the archive: /')
  return 0
}

step_rebuild() {
  need nvcc
  need cmake
  local generator=()
  if has ninja; then generator=(-G Ninja); fi
  local build=$CHECK_WORK/rebuild json=
  if [ -d "$CHECK_KIT/include" ]; then json=$CHECK_KIT/include; fi
  # CMakeLists.txt asks Node for the headers of Node-API, which are in the archive.
  PATH="$CHECK_KIT/bin:$PATH" NODE_PATH="$CHECK_KIT/node_modules" own cmake -S "$root" -B "$build" "${generator[@]}" \
    -DCMAKE_BUILD_TYPE=Release -DDIFFQKV_CUDA=ON -DDIFFQKV_ONEDNN=OFF ${json:+-DNLOHMANN_JSON_INCLUDE_DIR="$json"} || exit 1
  cmake --build "$build" --parallel "$(nproc)" --target addon gpu_driver device_check || exit 1
  mkdir -p "$CHECK_KIT/build/Release" "$CHECK_KIT/build-cmake"
  cp "$build/diffqkv.node" "$CHECK_KIT/build/Release/" && cp "$build/gpu_driver" "$build/device_check" "$CHECK_KIT/build-cmake/"
}

step_build_driver() {
  need nvcc
  mkdir -p "$(dirname "$CHECK_DRIVER")"
  bash "$root/test/gpu/build.sh" "$CHECK_DRIVER" && "$CHECK_DRIVER" list >/dev/null
}

step_device_layer() {
  need_file "$CHECK_DEVICE_CHECK"
  own "$CHECK_DEVICE_CHECK"
}

step_correctness() {
  need_file "$CHECK_DRIVER"
  own "$CHECK_DRIVER" correctness --shapes "$CHECK_SHAPES" --seconds "$(driver_seconds)"
}

step_timings() {
  need_file "$CHECK_DRIVER"
  own "$CHECK_DRIVER" timings --shapes "$CHECK_SHAPES" --seconds "$(driver_seconds)"
}

step_limits() {
  need python3
  python3 -c 'import torch' 2>/dev/null || skip 'python3 has no torch'
  PYTHONUNBUFFERED=1 python3 "$root/test/gpu/limits.py" --device "$([ "$CHECK_DEVICE" = cuda ] && echo cuda || echo cpu)" \
    --seconds $((CHECK_STEP_SECONDS - 6))
}

node_here() { PATH="$CHECK_KIT/bin:$PATH" DIFFQKV_TEST_DEVICES="$CHECK_DEVICE" OMP_WAIT_POLICY=passive own node "$@"; }

need_node() { PATH="$CHECK_KIT/bin:$PATH" need node; }

jest() { (cd "$CHECK_KIT" && node_here node_modules/jest/bin/jest.js --cacheDirectory="$CHECK_WORK/jest" "$@"); }

step_fixtures() {
  need_node
  [ -e "$CHECK_KIT/test/fixtures" ] || skip 'the archive has no checkpoints: run the script of a checkout'
  jest --runInBand --verbose --testPathPatterns '/test/fixtures\.test\.[jt]s$' ${CHECK_FIXTURES:+-t "$CHECK_FIXTURES"}
}

step_models() {
  need_node
  need_file "$CHECK_KIT/dist/lib/index.js"
  local status=0 name
  for name in sigma-1.5b sigma-10b; do
    node_here "$CHECK_KIT/test/gpu/models.cjs" "$name" "$CHECK_DEVICE" || status=$?
  done
  return $status
}

step_jest() {
  need_node
  local pattern ignored='/test/fixtures\.test\.' # it has a step of its own
  pattern=${CHECK_SUITES:-$(node_here "$CHECK_KIT/scripts/suites.mjs")} || exit 1
  if [ ! -e "$CHECK_KIT/test/fixtures" ]; then
    ignored="/test/($(cd "$CHECK_KIT/test" && grep -l "/fixtures['\"]" ./*.test.[jt]s | sed 's/^\.\///; s/\.test\.[jt]s$//' | paste -sd '|'))\\.test\\."
    echo "left out, as they need checkpoints: $ignored"
  fi
  jest --maxWorkers=8 --testPathPatterns "$pattern" --testPathIgnorePatterns "$ignored" /node_modules/
}

# TOOL SUBSTRING: compute-sanitizer on the driver's small cases.
sanitize() {
  need compute-sanitizer
  need_file "$CHECK_DRIVER"
  own compute-sanitizer --tool "$1" --error-exitcode 9 --target-processes all \
    "$CHECK_DRIVER" correctness --shapes small --in-process --seconds "$(driver_seconds)" ${2:+--only "$2"}
}

step_memcheck() { sanitize memcheck ''; }
step_racecheck() { sanitize racecheck attention; }
step_synccheck() { sanitize synccheck attention; }

NCU_CASES='attention_decode|decode attention'

NCU_METRICS=gpu__time_duration.sum,sm__cycles_elapsed.max,sm__throughput.avg.pct_of_peak_sustained_elapsed
NCU_METRICS+=,dram__bytes_read.sum,dram__bytes_write.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,lts__t_bytes.sum
NCU_METRICS+=,sm__warps_active.avg.pct_of_peak_sustained_active,smsp__inst_executed.sum,smsp__issue_active.avg.pct_of_peak_sustained_active
NCU_METRICS+=,sm__inst_executed_pipe_tensor.sum,sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active
NCU_METRICS+=,l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum,smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio
NCU_METRICS+=,launch__registers_per_thread,launch__shared_mem_per_block_dynamic,launch__grid_size,launch__waves_per_multiprocessor

step_ncu() {
  need ncu
  need_file "$CHECK_DRIVER"
  local status=0 kernel case seconds=$((CHECK_STEP_SECONDS / $(wc -l <<<"$NCU_CASES")))
  while IFS='|' read -r kernel case; do
    : >"$CHECK_WORK/ncu.csv"
    # ncu ends the driver as soon as it has its launch, so the driver's status means nothing.
    own timeout -k 1 $((seconds - 1)) ncu --clock-control none --csv --page raw --metrics "$NCU_METRICS" --log-file "$CHECK_WORK/ncu.csv" \
      --kernel-name "regex:$kernel" --launch-skip 3 --launch-count 1 --kill yes \
      "$CHECK_DRIVER" timings --in-process --only "$case" >"$CHECK_WORK/ncu.out" 2>&1
    cat "$CHECK_WORK/ncu.csv"
    if ! grep -qE '^"[0-9]+",' "$CHECK_WORK/ncu.csv"; then
      status=1
      echo "FAILED: ncu has nothing on $kernel ($case)"
      tail -5 "$CHECK_WORK/ncu.out"
    fi
  done <<<"$NCU_CASES"
  return $status
}

step_break_hang() {
  trap '' TERM
  setsid sleep 600 & # holds the output open, in a session that `timeout` does not reach
  echo 'hangs, and ignores SIGTERM'
  while :; do sleep 1; done
}
step_break_crash() { kill -SEGV $$; }
step_break_fail() { return 1; }

# ---- What a step's output says: one line for the summary. Status 1 if the output does not show that the step did its work.

count() { grep -cE "$1" "$2"; }

result_machine() { head -1 "$1"; }
result_unpack() {
  local differ
  differ=$(count '^differs from' "$1")
  echo "$(grep '^archive of' "$1")$( ((differ == 0)) || echo "; $differ sources differ from it, first $(sed -n 's/^differs from the archive: //p' "$1" | head -1)")"
}
result_device_layer() {
  echo "$(count '"name"' "$1") wrappers$(sed -nE 's/.*"name": "([^"]*)".*"different": [1-9].*/\1/p' "$1" | paste -sd ' ' | sed 's/^./; different: &/')"
  grep -q '"name"' "$1"
}
# Fields of JSON lines, each line as one item of a list.
items() { # PATTERN TEXT LOG
  sed -nE "s/.*$1.*/$2/p" "$3" | paste -sd ';' | sed 's/;/; /g'
}
# Lines of gpu_driver: how many cases ended how, and the first that are not ok.
result_driver() {
  local outcome line='' number
  for outcome in ok FAILED TIMEOUT CRASHED SKIPPED; do
    number=$(count "^\{.*\"case\": .*\"outcome\": \"$outcome\"" "$1")
    if ((number > 0)); then line+="${line:+, }$number $outcome"; fi
  done
  echo "${line:-no case ended}$(sed -nE 's/^\{.*"case": "([^"]*)", "outcome": "(FAILED|TIMEOUT|CRASHED)".*/\1/p' "$1" | head -8 | paste -sd '|' | sed 's/^./: &/; s/|/ | /g')"
  grep -q '"outcome": "ok"' "$1"
}
result_correctness() { result_driver "$1"; }
result_timings() { result_driver "$1"; }
result_limits() {
  items '"limit": "([^"]*)", "value": ([^,]*), "unit": "([^"]*)".*"headline": true' '\1 \2 \3' "$1"
  grep -q '"value"' "$1"
}
result_models() {
  items '"model":"([^"]*)","what":"([^"]*)","value":([^,]*),"unit":"([^"]*)"' '\1 \2 \3 \4' "$1"
  grep -q 'tokens\/s' "$1"
}
result_jest() {
  local line
  line=$(grep -E '^Tests: ' "$1" | tail -1)
  echo "${line:-not finished: $(count '^PASS ' "$1") files passed, $(count '^FAIL ' "$1") failed}$(sed -n 's/^FAIL //p' "$1" | sort -u | head -5 | paste -sd ' ' | sed 's/^./; failed: &/')"
  grep -qE '^Tests: .*passed' "$1"
}
result_fixtures() { result_jest "$1"; }
result_memcheck() {
  grep -E '(ERROR|RACECHECK) SUMMARY' "$1" | tail -1 | tr -d '='
  grep -qE 'ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' "$1"
}
result_racecheck() { result_memcheck "$1"; }
result_synccheck() { result_memcheck "$1"; }
result_ncu() {
  echo "$(count '^"[0-9]+",' "$1") kernels"
  grep -qE '^"[0-9]+",' "$1"
}

# ---- The run.

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
  names[i]=$1 outcomes[i]=$2 times[i]=$(($3 / 1000)).$(($3 % 1000 / 100)) lines[i]=${4:0:400}
  summary >"$out/summary.txt"
}

# Ends what a step has left behind, even in a session or process group of its own.
sweep() { # ID
  local file
  for file in $(grep -lzsx "CHECK_STEP_ID=$1" /proc/[0-9]*/environ); do
    kill -KILL "${file//[^0-9]/}" 2>/dev/null
  done
}

# Appends standard input to log.txt as it comes, up to HEAD_BYTES, and drops the rest.
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

# The lines of a step's output that are data get a file of their own.
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
  local name=$1 limit=$2 log=$work/$1.log id=$$.$1 left status begun took line outcome readers i
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
  CHECK_STEP_ID=$id CHECK_STEP_SECONDS=$limit timeout -k $GRACE "$limit" bash "$self" --step "$name" </dev/null >"$work/output" 2>&1 &
  running=$!
  while kill -0 $running 2>/dev/null; do # a signal to this script ends `wait`, not the step
    wait $running
    status=$?
  done
  running=
  took=$(($(milliseconds) - begun))
  sweep "$id"
  # The readers end with the last writer. One that cannot be killed must not hold up the run.
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
  if [ -n "$running" ]; then kill "$running" 2>/dev/null; fi
}

finish() {
  sweep "$$\..*"
  rm -rf "$work"
}

# The programs of the archive take the machine's libraries if it has them, else the archive's.
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
  local archive='' rebuild='' only='' rehearse='' broken='' name limit
  seconds=$(list_steps | sed -n 's/^total //p')
  while (($# > 0)); do
    case $1 in
      --rebuild) rebuild=rebuild ;;
      --archive | --only | --seconds | --rehearse | --break)
        (($# > 1)) || usage
        case $1 in
          --archive) archive=$2 ;;
          --only) only=$2 ;;
          --seconds) seconds=$2 ;;
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
  names=() outcomes=() times=() lines=() running='' stopped=''
  out=${OUT:-$root/bench/results/gpu}
  export PATH=$PATH:/usr/local/nvidia/bin:/usr/local/cuda/bin CHECK_DEVICE=cuda CHECK_SHAPES=all CHECK_SUITES='' CHECK_FIXTURES=''
  if [ -n "$rehearse" ]; then
    PATH=$root/test/gpu/stand_in:$PATH CHECK_DEVICE=emulated CHECK_SHAPES=small
    export CHECK_SUITES='/test/(rope|silu_mul|embed)\.test\.[jt]s$' CHECK_FIXTURES='llama-gqa-f32 .*logits after prefill'
    export DIFFQKV_MODULE=$rehearse/diffqkv-test.node DIFFQKV_TEST_REDUCED=1
  else
    find_gpu
  fi
  mkdir -p "$out" || exit 1
  rm -f "$out"/{summary.txt,log.txt,correctness.jsonl,timings.jsonl,limits.jsonl,models.jsonl,ncu.csv}
  work=$(mktemp -d) || exit 1
  trap finish EXIT
  trap 'stop SIGINT' INT
  trap 'stop SIGTERM' TERM
  title=$(cat "$root/commit" 2>/dev/null || git -C "$root" describe --always --dirty 2>/dev/null || echo 'unknown commit')
  title+=", $(date -u +%FT%TZ)${rehearse:+, a rehearsal without a GPU}"

  # The kit: the folder with Node and the programs.
  if [ -z "$archive" ] && [ ! -e "$root/bin/node" ] && [ -e "$root/build-gpu/diffqkv-gpu.tar.xz" ]; then
    archive=$root/build-gpu/diffqkv-gpu.tar.xz
  fi
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
      if [ -n "$rebuild" ]; then run_step rebuild 240; fi
      find_libraries
      if [ -z "$rehearse" ] && ! own timeout 5 "$CHECK_DRIVER" list >/dev/null 2>&1; then run_step build_driver 150; fi
    fi
    case ,$broken, in *,"$(broken_after "$name")",*) run_step "break_$(broken_after "$name")" 3 ;; esac
  done <<<"$STEPS"

  printf '\n'
  summary | tee "$out/summary.txt"
  case " ${outcomes[*]} " in *TIMEOUT* | *CRASHED* | *FAILED* | *INCOMPLETE*) exit 1 ;; esac
  # A machine that is there and an archive that unpacks have shown nothing yet.
  for limit in "${!names[@]}"; do
    case ${names[limit]}:${outcomes[limit]} in machine:* | unpack:*) ;; *:passed) exit 0 ;; esac
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
