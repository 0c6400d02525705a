#!/usr/bin/env bash
# A run on TPUs in a GKE cluster, through XPK (pip install xpk), from the repository's root:
#
#   launch/gke.sh build  --image=REGION-docker.pkg.dev/PROJECT/REPO/sctd_jax:TAG
#   launch/gke.sh run    --cluster=CLUSTER --name=NAME --type=v5litepod-8 --image=IMAGE [--slices=1] [--restarts=10]
#                        -- --config=configs/base.py --workdir=gs://BUCKET/runs/base ...
#   launch/gke.sh status | logs | delete --cluster=CLUSTER [--name=NAME]
#
# Kubernetes starts the pods again after a preemption or a failure, up to --restarts times; the run resumes from its newest
# checkpoint. A wrong config (exit status 2) is not tried again. --zone=ZONE and --project=PROJECT go to XPK and gcloud as
# they are. --dry-run prints the commands and runs none.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/lib.sh
source "$here/lib.sh"

command=${1:-} cluster='' name='' type=v5litepod-8 image='' slices=1 restarts=10 place=()
case $command in
    build | run | status | logs | delete) shift ;;
    -h | --help | help) usage "$0" 0 ;;
    *) die "${command:-no command} is not known: build, run, status, logs or delete; see $0 --help" ;;
esac
split "$@"
for flag in ${flags[@]+"${flags[@]}"}; do
    case $flag in
        --cluster=*) cluster=${flag#*=} ;;
        --name=*) name=${flag#*=} ;;
        --type=*) type=${flag#*=} ;;
        --image=*) image=${flag#*=} ;;
        --slices=*) slices=${flag#*=} ;;
        --restarts=*) restarts=${flag#*=} ;;
        --zone=*) check_zone "${flag#*=}" && place+=("$flag") ;;
        --project=*) check_project "${flag#*=}" && place+=("$flag") ;;
        *) unknown "$flag" ;;
    esac
done
on_cluster=("--cluster=$cluster" ${place[@]+"${place[@]}"})

need() { # FLAG VALUE
    [[ -n $2 ]] || die "$command needs $1; see $0 --help"
}

[[ $command == run ]] || no_arguments "$command"
[[ $command == build ]] || need --cluster "$cluster"
[[ -z $cluster ]] ||
    check_form --cluster "$cluster" '^[a-z]([-a-z0-9]*[a-z0-9])?$' "letters a-z, digits and - are allowed"
[[ -z $image ]] ||
    check_form --image "$image" '^[A-Za-z0-9][-A-Za-z0-9._:/@]*$' "REGISTRY/REPO/sctd_jax:TAG is expected"
check_type "$type"
check_form --slices "$slices" '^[1-9][0-9]{0,3}$' "a whole number from 1 to 9999 is expected"
check_form --restarts "$restarts" '^(0|[1-9][0-9]{0,5})$' "a whole number from 0 to 999999 is expected"
if [[ $command != build && $command != status ]]; then
    need --name "$name"
    # What XPK allows: a label of Kubernetes that leaves room for what the names of pods add.
    [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
        die "--name=$name: up to 40 letters a-z, digits and - are allowed, a letter first and no - at the end"
fi
case $command in
    build)
        need --image "$image"
        run docker build --build-arg "ACCELERATOR=tpu" --tag "$image" --file "$here/Dockerfile" "$here/.."
        run docker push "$image"
        ;;
    run)
        need --image "$image"
        need_arguments_of_main
        find_output
        [[ -z $option ]] || need_bucket "$option" "$value" "a pod's disk is lost with the pod: a run needs"
        run xpk workload create "${on_cluster[@]}" "--workload=$name" "--tpu-type=$type" "--num-slices=$slices" \
            "--docker-image=$image" "--max-restarts=$restarts" --restart-on-exit-codes=1,75 \
            "--command=$(quoted python -m sctd_jax.main "${arguments[@]}")"
        ;;
    status) run xpk workload list "${on_cluster[@]}" ;;
    logs)
        run gcloud container clusters get-credentials "$cluster" ${place[@]+"${place[@]}"}
        run kubectl logs --follow --tail=-1 \
            --selector "jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
        ;;
    delete) run xpk workload delete "${on_cluster[@]}" "--workload=$name" --force ;;
esac
