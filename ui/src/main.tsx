import { render } from "preact";
import { loadModels } from "./connection";
import { App } from "./views/App";

void loadModels();
render(<App />, document.getElementById("app") as HTMLElement);
