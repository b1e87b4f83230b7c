// The page. All that it shows is drawn from `photos`: each photo carries its own faces, messages and result, so that
// none of them can stand beside another photo.

const $ = (selector, root = document) => root.querySelector(selector);
const PHONE = matchMedia("(max-width: 56rem)");
const TOUCH = matchMedia("(hover: none)"); // nothing can be dropped
const LOOKS = [
  ["faithful", "Faithful"],
  ["default", "In between"],
  ["detailed", "Detailed"],
];
const TRIES = 4;

let settings = null; // what /settings says
let photos = []; // of the visitor, as newPhoto makes them
let current = null; // the one that is looked at
let working = null; // AbortController of a restoration

class Stopped extends Error {}

// ---------------------------------------------------------------- the server

async function request(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Check that it is running and that you are online, then try again.");
  }
  if (answer.status === 401) {
    await logIn();
    return request(path, options);
  }
  if (answer.status === 503) throw new Error("Too many visitors are waiting. Try again in a minute.");
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(sentence(typeof said.error === "string" ? said.error : "The server could not do this; try again."));
  }
  return answer.json();
}

/** An error as a sentence; a file's name that it begins with stays as it is. */
function sentence(text) {
  const first = /^[^:]+\.\w+: /.test(text) ? text[0] : text[0].toUpperCase();
  return first + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

/** Call an endpoint; `onUpdate` gets {rank} while it waits, 0 for who is next, and {data} from when it works, null at first. */
async function call(name, values, onUpdate = () => {}, signal = null) {
  const post = (path, body) =>
    request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const { event_id } = await post(`gradio_api/call/v2/${name}`, values);
  return new Promise((resolve, reject) => {
    const source = new EventSource(`gradio_api/queue/data?session_hash=${event_id}`);
    const end = (settle, value) => {
      source.close();
      settle(value);
    };
    const stop = () => {
      post("gradio_api/cancel", { event_id, session_hash: event_id, fn_index: 1 }).catch(() => {});
      end(reject, new Stopped());
    };
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop);
    source.onerror = () => end(reject, new Error("The connection to the server was lost. Try again."));
    source.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.msg === "estimation") onUpdate({ rank: message.rank });
      else if (message.msg === "process_starts") onUpdate({ data: null });
      else if (message.msg === "process_generating" && message.success) onUpdate({ data: message.output.data });
      else if (message.msg === "process_completed" && message.success) end(resolve, message.output.data);
      else if (message.success === false) {
        const why = message.output?.error ?? "Something went wrong on the server, whose log says what. Try again.";
        end(reject, new Error(sentence(why)));
      }
    };
  });
}

const fileOf = (path) => `gradio_api/file=${path.split("/").map(encodeURIComponent).join("/")}`;

function logIn() {
  const dialog = $("#login"), form = $("form", dialog);
  dialog.oncancel = (event) => event.preventDefault();
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    form.onsubmit = async (event) => {
      event.preventDefault();
      const answer = await fetch("login", { method: "POST", body: new FormData(form) }).catch(() => null);
      if (!answer?.ok) {
        $("[role=alert]", form).textContent = answer ? "That is not right; try again." : "The server does not answer.";
        return;
      }
      dialog.close();
      resolve();
    };
  });
}

// ---------------------------------------------------------------- photos

const newPhoto = (file) => ({
  file,
  address: URL.createObjectURL(file), // of what is shown
  state: "uploading", // then looking, and ready or refused; while it is restored running
  message: "Uploading …",
  error: "",
  path: null, // of the upload
  found: null, // what /find_faces says
  chosen: new Set(), // numbers of faces
  progress: null,
  result: null, // {files, report}
  view: 0,
  sample: 0,
});

const canRestore = (photo) => photo.state === "ready" && photo.chosen.size > 0;
const isBusy = () => working !== null || photos.some(({ state }) => state === "uploading" || state === "looking");

async function take(files) {
  if (!files.length) return;
  working?.abort();
  for (const photo of photos) URL.revokeObjectURL(photo.address);
  photos = [...files].map(newPhoto);
  current = photos[0];
  draw();
  for (const photo of photos) await look(photo);
}

async function look(photo) {
  try {
    await filled;
    if (photo.file.size > settings.max_upload_mb * 1e6)
      throw new Error(`${photo.file.name} is larger than ${settings.max_upload_mb} MB. Reduce it first.`);
    const body = new FormData();
    body.append("files", photo.file, photo.file.name);
    [photo.path] = await request("gradio_api/upload", { method: "POST", body });
    Object.assign(photo, { state: "looking", message: "Looking for faces …" });
    draw();
    const [found] = await call("find_faces", { photo: uploaded(photo), previews: true });
    photo.address = fileOf(found.preview);
    photo.chosen = new Set(found.restorable);
    Object.assign(photo, { state: "ready", message: found.summary, found });
  } catch (error) {
    Object.assign(photo, { state: "refused", message: "", error: error.message });
  }
  draw();
}

const uploaded = ({ path }) => ({ path, meta: { _type: "gradio.FileData" } });

async function restore(targets, samples) {
  const values = new Map(targets.map((photo) => [photo, chosenValues(photo)])); // before the controls go off
  working = new AbortController();
  const { signal } = working;
  for (const photo of targets) Object.assign(photo, { state: "running", error: "", message: "", progress: {} });
  for (const photo of targets) {
    if (targets.length > 1 && !signal.aborted) current = photo;
    draw();
    if (photo === targets[0]) show($("#output"));
    try {
      if (signal.aborted) throw new Stopped();
      const own = { photo: uploaded(photo), samples, previews: true, ...values.get(photo) };
      const [files, report] = await call("restore", own, (update) => progressed(photo, update), signal);
      Object.assign(photo, { result: { files, report }, view: 0, sample: 0 });
      photo.message = `Done in ${report.seconds.toFixed(1)} seconds.`;
    } catch (error) {
      photo.message = error instanceof Stopped ? "Stopped." : "";
      if (!(error instanceof Stopped)) photo.error = error.message;
    }
    Object.assign(photo, { state: "ready", progress: null });
  }
  if (working?.signal === signal) working = null;
  draw();
  if (current?.result) show($("#result"));
}

function progressed(photo, { rank, data }) {
  if (rank !== undefined) photo.progress.text = `Waiting: number ${rank + 1} in line`;
  else if (data === null) photo.progress.text = "Starting …";
  else if (data[1]?.total) {
    const { done, total, emerging } = data[1];
    photo.progress = { text: `Restoring, ${Math.round((100 * done) / total)} %`, value: done / total, emerging };
  }
  drawProgress();
}

/** On a phone the result lies below the settings. */
function show(element) {
  if (PHONE.matches) element.scrollIntoView({ behavior: "smooth" });
}

/** What the settings say, in the words of /restore. */
function chosenValues(photo) {
  const form = new FormData($("#settings"));
  const preset = form.get("method") || form.get("look") || "default";
  const { acting, defaults } = settings.presets[preset];
  const values = {
    preset,
    strength: Number(form.get("strength")) / 100,
    scale: form.get("scale"),
    upscale: form.get("upscale"),
    seed: Number(form.get("seed") || 0),
    corrector: form.has("corrector") || $("#corrector").disabled,
    prior: form.get("prior"),
    as_jpeg: !photo.found.aligned && photo.found.format === "HEIF" && form.has("as_jpeg"),
    with_location: !form.has("no_location"),
  };
  for (const name of ["steps", "stride", "edge_exponent", "eta"])
    if (acting.includes(name) && form.get(name) && Number(form.get(name)) !== defaults[name])
      values[name] = Number(form.get(name));
  if (!photo.found.aligned && photo.chosen.size < photo.found.restorable.length) values.faces = [...photo.chosen];
  return values;
}

// ---------------------------------------------------------------- what is seen

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function radios(group, name, labels, chosen, onChoose) {
  const made = labels.map((children, index) => {
    const input = make("input", { type: "radio", name, value: index, checked: index === chosen });
    input.onchange = () => onChoose(index);
    return make("label", {}, input, ...children);
  });
  group.replaceChildren($("legend", group), ...made);
}

function draw() {
  const photo = current, busy = isBusy();
  document.body.ariaBusy = busy;
  $("#drop").classList.toggle("small", photo !== null);
  const which = photo ? "another photo" : "a photo";
  $("#drop .large").textContent = TOUCH.matches ? `Choose ${which}` : `Drop ${which} here`;
  $("#drop .large + span").textContent = TOUCH.matches ? "or several" : "or choose one, or several";
  $("#with-photo").hidden = photo === null || photo.state === "refused" && photos.length === 1;
  $("#error").textContent = photo?.error ?? "";
  for (const control of $("#settings").elements) control.disabled = busy;
  if (!busy) greyOut();
  $("#output").hidden = !photo?.result && !photo?.progress;
  if (!photo) return;
  drawPhotos();
  drawPhoto(photo, busy);
  drawProgress();
  drawResult(photo, busy);
}

function drawPhotos() {
  $("#photos").hidden = photos.length < 2;
  const marks = { refused: "✗ ", running: "… ", ready: "" };
  const labels = photos.map((photo) => [
    photo.state === "refused" ? make("i") : make("img", { src: photo.result ? fileOf(photo.result.report.views[0].after[photo.sample]) : photo.address, alt: "" }),
    make("small", {}, (photo.result ? "✓ " : (marks[photo.state] ?? "… ")) + photo.file.name),
  ]);
  radios($("#photos"), "photo", labels, photos.indexOf(current), (index) => {
    current = photos[index];
    draw();
    $(`#photos input[value="${index}"]`).focus();
  });
}

function drawPhoto(photo, busy) {
  const image = $("#photo img");
  if (image.getAttribute("src") !== photo.address) image.src = photo.address;
  $("#photo").hidden = photo.state === "refused";
  $("#message").textContent = photo.message;
  $("#message").hidden = !photo.message;
  const [width, height] = photo.found?.size ?? [1, 1];
  const boxes = (photo.found?.faces ?? []).map(({ number, box: [left, top, right, bottom], place, left_alone }) => {
    const alone = left_alone !== null;
    const input = make("input", { type: "checkbox", checked: photo.chosen.has(number), disabled: busy || alone });
    input.ariaLabel = `Face ${number}, ${place}` + (alone ? `, left alone: ${left_alone}` : "");
    input.onchange = () => {
      photo.chosen[input.checked ? "add" : "delete"](number);
      drawButtons(photo);
    };
    const label = make("label", { className: alone ? "face alone" : "face", title: input.ariaLabel }, input);
    label.style.left = `${(100 * left) / width}%`;
    label.style.top = `${(100 * top) / height}%`;
    label.style.width = `${(100 * (right - left)) / width}%`;
    label.style.height = `${(100 * (bottom - top)) / height}%`;
    return label;
  });
  $("#faces").replaceChildren($("#faces legend"), ...boxes);
  $("#as-jpeg").hidden = !photos.some(({ found }) => found?.format === "HEIF" && !found.aligned);
  $("#no-location").hidden = !photos.some(({ found }) => found?.has_location);
  $("#saving").hidden = $("#as-jpeg").hidden && $("#no-location").hidden;
  drawButtons(photo);
}

function drawButtons() {
  const ready = photos.filter(canRestore).length;
  $("#restore").disabled = isBusy() || ready === 0;
  $("#restore").textContent = ready > 1 ? `Restore all ${ready} photos` : "Restore";
  $("#stop").hidden = working === null;
}

function drawProgress() {
  const progress = current?.progress;
  $("#progress").hidden = !progress;
  if (!progress) return;
  $("#progress-text").textContent = progress.text ?? "Waiting …";
  $("#progress progress").value = progress.value ?? 0;
  const faces = (progress.emerging ?? []).map((src, index) => make("img", { src, alt: `Try ${index + 1} as it looks now` }));
  $("#emerging").replaceChildren(...faces);
}

function drawResult(photo, busy) {
  $("#result").hidden = !photo.result;
  if (!photo.result) return;
  const { files, report } = photo.result;
  const { views } = report, view = views[photo.view], several = view.after.length > 1;
  const choose = (what, group) => (index) => {
    photo[what] = index;
    draw();
    $(`#${group} input[value="${index}"]`).focus();
  };
  $("#views").hidden = views.length < 2;
  radios($("#views"), "view", views.map(({ name }) => [name]), photo.view, choose("view", "views"));
  $("#compare .before").src = fileOf(view.before);
  $("#compare .after").src = fileOf(view.after[photo.sample]);
  $("#tries").hidden = !several;
  const tiles = view.after.map((path, index) => [make("img", { src: fileOf(path), alt: `Try ${index + 1}` })]);
  radios($("#tries"), "try", several ? tiles : [], photo.sample, choose("sample", "tries"));
  const { path } = files[photo.sample], name = path.split("/").pop();
  Object.assign($("#download"), { href: fileOf(path), download: name, textContent: `Download ${name}` });
  $("#download-all").hidden = photos.filter(({ result }) => result).length < 2;
  $("#others").hidden = several || settings.max_samples < 2 || !settings.presets[photoPreset(report)].acting.includes("samples");
  $("#others").disabled = busy;
  $("#agreement").textContent = report.agreement[photo.sample];
  $("#doubt").hidden = !view.doubt;
  if (view.doubt) $("#doubt img").src = fileOf(view.doubt);
  $("#doubt-words").textContent = report.doubt ?? "";
  $("#command").value = report.command;
  $("#numbers tbody").replaceChildren(...numbers(report).map(([head, text]) =>
    make("tr", {}, make("th", { scope: "row" }, head), make("td", {}, text))));
  const links = files.flatMap(({ path }) => [make("a", { href: fileOf(path), download: path.split("/").pop() }, path.split("/").pop()), " "]);
  $("#files").replaceChildren(...links);
}

const photoPreset = ({ method }) => (method in settings.presets ? method : "default");

function numbers(report) {
  const restored = (report.faces ?? [report]).map((face, index) => [face, index + 1]).filter(([face]) => face.lr_consistency);
  return [
    ["Time", `${report.seconds} s`],
    ...restored.map(([face, number]) => [
      `Face ${number}`,
      `×${Number(face.scale.toPrecision(3))}; agrees with the photo to ${face.lr_consistency.map((value) => value.toFixed(1)).join(", ")} dB`,
    ]),
    ...(report.upscale ? [["Enlarged", `×${report.upscale}`]] : []),
    ["Method", report.method],
    ["Seed", report.seed],
    ["Options", Object.entries(report.options).map(([name, value]) => `${name} ${value}`).join(", ")],
    ...(report.notes.length ? [["Notes", report.notes.join("; ")]] : []),
  ];
}

/** Leave only those settings live that change something; put in the method's own defaults. */
function greyOut() {
  if (!settings) return;
  const form = $("#settings").elements, preset = form.method.value || $("[name=look]:checked")?.value || "default";
  const { acting, summary } = settings.presets[preset];
  $("#method-hint").textContent = summary || "The method of this page; the others are there to compare.";
  for (const radio of document.querySelectorAll("[name=look]")) radio.disabled = form.method.value !== "";
  const corrector = settings.priors[form.prior.value];
  for (const name of ["seed", "steps", "stride", "edge_exponent", "eta", "corrector"])
    form[name].disabled = !acting.includes(name) || (name === "corrector" && corrector === null);
  const coarser = !form.corrector.disabled && form.corrector.checked ? corrector : 1;
  for (const option of form.stride.options) option.disabled = Number(option.value) % coarser !== 0;
}

function putDefaults() {
  const form = $("#settings").elements, preset = form.method.value || $("[name=look]:checked")?.value || "default";
  for (const [name, value] of Object.entries(settings.presets[preset].defaults)) form[name].value = value;
}

// ---------------------------------------------------------------- what the visitor does

function listen() {
  $("#file").onchange = ({ target }) => {
    const files = [...target.files];
    target.value = ""; // the same file may be chosen again
    take(files);
  };
  for (const name of ["dragover", "drop"])
    addEventListener(name, (event) => {
      event.preventDefault();
      $("#drop").classList.toggle("over", name === "dragover");
      if (name === "drop") take([...event.dataTransfer.files]);
    });
  addEventListener("dragleave", () => $("#drop").classList.remove("over"));
  addEventListener("paste", ({ clipboardData }) => take([...clipboardData.files]));
  $("#example").onclick = async () => {
    const content = await (await fetch("page/example.webp")).blob();
    take([new File([content], "example.webp", { type: "image/webp" })]);
  };
  $("#restore").onclick = () => restore(photos.filter(canRestore), 1);
  $("#others").onclick = () => restore([current], Math.min(TRIES, settings.max_samples));
  $("#stop").onclick = () => working?.abort();
  $("#settings").onsubmit = (event) => event.preventDefault();
  $("#settings").onchange = ({ target }) => {
    if (target.name === "method" || target.name === "look") putDefaults();
    greyOut();
  };
  const line = $("#compare input");
  line.oninput = () => $("#compare").style.setProperty("--at", `${line.value}%`);
  $("#full-screen").onclick = () => $("#compare").requestFullscreen();
  $("#download-all").onclick = async () => {
    for (const { result, sample } of photos.filter(({ result }) => result)) {
      const { path } = result.files[sample];
      make("a", { href: fileOf(path), download: path.split("/").pop() }).click();
      await new Promise((resolve) => setTimeout(resolve, 300)); // browsers drop downloads that come all at once
    }
  };
  $("#copy").onclick = () => {
    if (navigator.clipboard) navigator.clipboard.writeText($("#command").value);
    else {
      $("#command").select();
      document.execCommand("copy"); // no clipboard without https, except on this machine
    }
  };
  listenToCamera();
}

function listenToCamera() {
  if (!navigator.mediaDevices) return;
  const dialog = $("#viewfinder"), video = $("video", dialog);
  $("#camera").hidden = false;
  $("#camera").onclick = async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: 1920 } });
      dialog.showModal();
    } catch {
      $("#error").textContent = "The camera cannot be used. Allow it in the browser, or choose a file.";
    }
  };
  $("#shoot").onclick = () => {
    const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((content) => take([new File([content], "camera.jpg", { type: "image/jpeg" })]), "image/jpeg", 0.95);
    dialog.close();
  };
  $("#no-shoot").onclick = () => dialog.close();
  dialog.onclose = () => video.srcObject?.getTracks().forEach((track) => track.stop());
}

async function fillSettings() {
  [settings] = await call("settings", {});
  const offered = LOOKS.filter(([name]) => name in settings.presets);
  $("#looks").hidden = offered.length < 2;
  for (const [name, text] of offered) {
    const input = make("input", { type: "radio", name: "look", value: name, checked: name === "default" });
    $("#looks").append(make("label", {}, input, text));
  }
  const names = Object.keys(settings.presets).filter((name) => !LOOKS.some(([look]) => look === name));
  $("#method").append(make("option", { value: "" }, "as above"), ...names.map((name) => make("option", { value: name }, name)));
  $("#stride").append(...settings.strides.map((value) => make("option", { value }, value)));
  $("#prior").append(...Object.keys(settings.priors).map((name) => make("option", { value: name }, name)));
  $("#prior-field").hidden = Object.keys(settings.priors).length < 2;
  putDefaults();
}

listen();
draw();
const filled = fillSettings();
filled.catch(({ message }) => ($("#error").textContent = message));
