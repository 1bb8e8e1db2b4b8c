FROM python:3.11-slim

# Triton compiles its launchers with gcc at run time, Inductor its kernels with g++.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# Other package indexes, for instance one with a CPU-only torch.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /kata
COPY requirements.txt ./
RUN pip install --no-cache-dir --root-user-action=ignore -r requirements.txt

# The container runs with a read-only root, so everything that is written goes to /tmp.
ENV HOME=/tmp \
    USER=kata \
    LOGNAME=kata \
    TRITON_CACHE_DIR=/tmp/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin kata
COPY . ./
RUN chmod -R a+rX . && install -d -o kata -g kata evaluation/reports
USER kata
CMD ["python", "-m", "evaluation.evaluate"]
