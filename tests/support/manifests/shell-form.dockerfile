FROM python:3.13-slim
RUN pip install --no-cache-dir smartpipe==0.1.0
USER 10001
CMD smartpipe worker shop:service
