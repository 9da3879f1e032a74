"""Training, re-training, job submission and the online endpoint, on Ray and Kubernetes.

    training/, pretraining/    photographs -> generated forgeries -> weights of the network
    retraining/                reviewers' labels -> a prompt set, promoted if no test gets worse
    fleet/                     a scan as a job on a Ray cluster; an image by HTTP -> its row
    kubernetes/                manifests of the cluster itself

This package may import `pipeline`, `engine` and torch; neither of the two imports it.
"""
