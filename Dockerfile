# The page on a CPU:  docker build -t faceprior . && docker run --rm -p 7860:7860 faceprior
# On a GPU:           docker build --build-arg TORCH=cu126 -t faceprior . && docker run --rm --gpus all -p 7860:7860 faceprior
# Files:              docker run --rm -v "$PWD:/home/faceprior/work" -w /home/faceprior/work faceprior restore photo.jpg
FROM python:3.12-slim AS build
# which build of torch: cpu, cu126, ... (uv's torch backends)
ARG TORCH=cpu
ENV UV_TORCH_BACKEND=${TORCH} UV_CONSTRAINT=/src/constraints.txt UV_COMPILE_BYTECODE=1 VIRTUAL_ENV=/opt/faceprior
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
COPY packages packages
RUN pip install --no-cache-dir "uv>=0.9,<1" \
    && python -m venv /opt/faceprior \
    && uv pip install --no-cache '.[heic,video,web]' ./packages/weights

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 faceprior
COPY --from=build /opt/faceprior /opt/faceprior
ENV PATH=/opt/faceprior/bin:$PATH
USER 1000
WORKDIR /home/faceprior
RUN mkdir -p .cache/huggingface
EXPOSE 7860
HEALTHCHECK --interval=30s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/healthz', timeout=5)"]
ENTRYPOINT ["faceprior"]
CMD ["serve", "--host", "0.0.0.0"]
