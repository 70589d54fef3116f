FROM python:3.12-slim

RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin service \
    && mkdir /data && chown service /data

# The dependencies change less often than the code: a layer of their own.
COPY requirements.lock /source/
RUN pip install --no-cache-dir --requirement /source/requirements.lock

COPY pyproject.toml README.md LICENSE /source/
COPY broker /source/broker
COPY services /source/services
RUN pip install --no-cache-dir --no-deps /source && rm -rf /source

USER service
WORKDIR /data
VOLUME /data
ENV NATS_URL=nats://nats:4222 \
    DATABASE_URL=sqlite:////data/environments.sqlite

# Two nodes with one id break a cluster. A container's host name is its own, and the health check can name it too.
CMD ["sh", "-c", "export NODE_ID=\"${NODE_ID:-environments-store-$(hostname)}\"; exec environments-store serve"]

# Asks this very node over NATS, and no other: nothing joins the cluster, and no JS node gets or logs anything of it.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 \
    CMD node="${NODE_ID:-environments-store-$(hostname)}"; \
        broker call environments-store.schema --node "$node" --timeout 5
