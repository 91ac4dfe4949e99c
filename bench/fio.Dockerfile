# fio with the libraries that the guest lacks: the same distribution, so it runs there from a folder.
ARG BASE=debian:trixie-slim
FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends fio \
 && rm -rf /var/lib/apt/lists/*
RUN mkdir /fio && cp /usr/bin/fio /fio/ \
 && ldd /usr/bin/fio | awk '$3 ~ "^/" {print $3}' | grep -Ev '/lib(c|m)\.so' | xargs cp -L -t /fio
CMD ["tar", "-c", "fio"]
