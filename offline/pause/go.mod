module spdk-k8s/offline/pause

go 1.26
