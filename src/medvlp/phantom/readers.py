"""The phantom's radiologists and their stock sentences: each has an order of organs and habits of phrasing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reader:
    """Habits that one radiologist keeps in all reports.

    Args:
        order: organ groups in the order of dictation.
        shapes: sentence forms for a positive finding; fields ``{np}``, ``{Np}``, ``{a_np}``, ``{be}``, ``{cap_be}``.
        heart: ways of saying that the heart is normal.
        lungs: ways of saying that the lungs are clear.
        mediastinum: ways of saying that the mediastinum is normal.
        bones: ways of saying that the bones are normal.
        none: forms of a negative sentence; field ``{list}`` holds "pleural effusion or pneumothorax".
        normal: impressions of a normal study.
        history: header of the indication.
        comparison: header of the comparison.
        numbered: whether the impression is numbered when it has more than one point.
        extras: mean number of sentences about normal or incidental things.
        negatives: share of the possible pertinent negatives that are stated.
        labelled: whether sentences start with the organ ("Lungs: ...").
        clipped: whether articles and verbs are dropped.
        title: whether a title line heads the report instead of an EXAMINATION section.
    """

    order: tuple[str, ...]
    shapes: tuple[str, ...]
    heart: tuple[str, ...]
    lungs: tuple[str, ...]
    mediastinum: tuple[str, ...]
    bones: tuple[str, ...]
    none: tuple[str, ...]
    normal: tuple[str, ...]
    history: str = "INDICATION"
    comparison: str = "COMPARISON"
    numbered: bool = False
    extras: float = 1.0
    negatives: float = 0.6
    labelled: bool = False
    clipped: bool = False
    title: bool = False


READERS: tuple[Reader, ...] = (
    Reader(
        order=("devices", "lungs", "pleura", "heart", "mediastinum", "bones", "other"),
        shapes=("There {be} {a_np}.", "There {be} {a_np}.", "{Np} {be} seen."),
        heart=("The heart is normal in size.", "Heart size is within normal limits."),
        lungs=("The lungs are clear.", "The lungs are clear without focal abnormality."),
        mediastinum=("The mediastinal and hilar contours are unremarkable.", "The mediastinal contours are normal."),
        bones=("The osseous structures are unremarkable.", "No acute osseous abnormality is seen."),
        none=("There is no {list}.", "There is no evidence of {list}."),
        normal=("No acute cardiopulmonary process.", "No acute intrathoracic process."),
    ),
    Reader(
        order=("heart", "mediastinum", "lungs", "pleura", "bones", "devices", "other"),
        shapes=("{Np}.", "{Np}.", "{Np} noted."),
        heart=("Normal heart size.", "Heart size normal."),
        lungs=("Lungs clear.", "Clear lungs bilaterally."),
        mediastinum=("Mediastinum unremarkable.", "Normal hilar and mediastinal contours."),
        bones=("Bones unremarkable.", "Intact osseous structures."),
        none=("No {list}.",),
        normal=("Normal chest radiograph.", "No acute disease.", "Normal chest."),
        history="HISTORY",
        extras=0.4,
        negatives=0.5,
        clipped=True,
        title=True,
    ),
    Reader(
        order=("heart", "mediastinum", "pleura", "lungs", "devices", "bones", "other"),
        shapes=("{Np} {be} present.", "{Np} {be} demonstrated.", "There {be} {a_np}.", "{cap_be} noted {be} {a_np}."),
        heart=(
            "The cardiac silhouette is normal in size and configuration.",
            "The heart is not enlarged and maintains a normal configuration.",
        ),
        lungs=(
            "The lungs are well expanded and clear bilaterally.",
            "Both lungs are adequately aerated, without focal parenchymal abnormality.",
        ),
        mediastinum=(
            "The mediastinal, hilar and aortic contours maintain a normal appearance.",
            "The trachea is midline and the mediastinal contours are preserved.",
        ),
        bones=(
            "The visualized osseous structures of the thorax are grossly intact.",
            "Limited evaluation of the skeleton demonstrates no acute abnormality.",
        ),
        none=("There is no radiographic evidence of {list}.", "No {list} is identified on the current examination."),
        normal=(
            "No radiographic evidence of an acute cardiopulmonary abnormality.",
            "Unremarkable radiographic examination of the chest, without an acute abnormality.",
        ),
        extras=2.0,
        negatives=0.75,
    ),
    Reader(
        order=("lungs", "pleura", "heart", "mediastinum", "bones", "devices", "other"),
        shapes=("{Np}.", "There {be} {a_np}.", "{Np} {be} identified."),
        heart=("Normal size.", "Cardiac silhouette within normal limits for size."),
        lungs=("Clear.", "Well inflated and clear."),
        mediastinum=("Unremarkable contours.", "Normal."),
        bones=("No acute abnormality.", "Unremarkable for age."),
        none=("No {list}.", "Negative for {list}."),
        normal=("No acute findings in the chest.", "No acute cardiopulmonary abnormality."),
        history="REASON FOR EXAM",
        numbered=True,
        negatives=0.8,
        labelled=True,
    ),
    Reader(
        order=("pleura", "lungs", "mediastinum", "heart", "devices", "bones", "other"),
        shapes=("{Np} {be} noted.", "{Np} {be} observed on this examination.", "There {be} {a_np}."),
        heart=("Heart size is normal.", "Cardiac size is normal."),
        lungs=("Lungs are clear.", "The lung fields are clear."),
        mediastinum=("Cardiac and mediastinal borders are sharp.", "Hila and mediastinum are within normal limits."),
        bones=("Bony thorax is unremarkable.", "No suspicious bone lesion is seen."),
        none=("No {list} is present.", "No {list} is seen.", "There is no {list}."),
        normal=("No evidence of acute disease.", "No active disease."),
        history="CLINICAL HISTORY",
        comparison="COMPARISONS",
        numbered=True,
        extras=1.2,
    ),
    Reader(
        order=("devices", "heart", "lungs", "pleura", "other", "mediastinum", "bones"),
        shapes=("As seen on this study, there {be} {a_np}.", "{Np} {be} visualized.", "{Np}."),
        heart=("Cardiomediastinal silhouette is within normal limits.", "Cardiomediastinal silhouette is normal."),
        lungs=("Lung volumes are normal and the lungs are clear.", "Lungs are clear bilaterally."),
        mediastinum=("Hilar contours are normal.", "Pulmonary hila are symmetric."),
        bones=("Imaged bones are intact.", "Imaged osseous structures are intact."),
        none=("No {list}.", "No {list} seen.", "No visible {list}."),
        normal=("No acute cardiopulmonary process.", "No acute cardiopulmonary pathology."),
        numbered=True,
        negatives=0.7,
    ),
    Reader(
        order=("heart", "lungs", "pleura", "bones", "mediastinum", "devices", "other"),
        shapes=("I see {a_np}.", "{Np} {be} apparent.", "Findings include {a_np}."),
        heart=("The heart appears normal.", "The size of the heart appears normal."),
        lungs=("I see no parenchymal abnormality.", "The lungs appear clear."),
        mediastinum=("The mediastinum appears normal.", "The great vessels appear unremarkable."),
        bones=("The skeleton appears intact for the patient's age.", "Bony structures appear normal."),
        none=("I see no {list}.", "No definite {list}.", "No {list} can be appreciated."),
        normal=("Essentially normal examination of the chest.", "No significant abnormality."),
        history="HISTORY",
        extras=1.4,
        negatives=0.45,
    ),
    Reader(
        order=("lungs", "heart", "pleura", "mediastinum", "devices", "bones", "other"),
        shapes=("{Np}.", "{Np}."),
        heart=("Heart not enlarged.", "Cardiac size WNL."),
        lungs=("Lungs clear bilat.", "Clear lung fields."),
        mediastinum=("Mediastinum WNL.", "Hila WNL."),
        bones=("Bones OK.", "Osseous structures WNL."),
        none=("No {list}.", "Neg for {list}."),
        normal=("Negative chest.", "NAD.", "No acute process."),
        history="REASON FOR EXAMINATION",
        extras=0.3,
        negatives=0.4,
        clipped=True,
    ),
)
"""The radiologists; a study's ``reader`` counts through them and wraps around."""

HEDGES = (
    "Possible {np}.",
    "There may be {a_np}.",
    "{Np} cannot be excluded.",
    "{Np} {be} suspected.",
    "Questionable {np}.",
    "An appearance that may represent {a_np}.",
    "{Np} {be} possible, although the projection limits the assessment.",
    "Subtle findings could reflect {a_np}.",
)
BEFORE = (
    "unchanged",
    "stable",
    "persistent",
    "improved",
    "slightly worsened",
    "increasing",
    "new",
    "residual",
)
AFTER = (
    ", unchanged from the prior study",
    ", similar to the previous examination",
    ", new since the prior radiograph",
    ", improved compared with ___",
    ", slightly increased in the interval",
    ", not significantly changed since ___",
    ", better seen than on the prior study",
)
NOT_COMPARED = ("improved", "slightly worsened", "increasing", "residual")
"""What no one says of a tube or a coin."""

EXTRAS = (
    "Mild degenerative changes are seen in the thoracic spine.",
    "There is a mild scoliosis of the thoracic spine.",
    "The aorta is mildly tortuous.",
    "Atherosclerotic calcifications are noted at the aortic arch.",
    "Lung volumes are low.",
    "No free air is seen beneath the diaphragm.",
    "The upper abdomen is unremarkable.",
    "The patient is slightly rotated.",
    "Multilevel degenerative disc disease is present.",
    "The trachea is midline.",
    "Bowel gas pattern in the upper abdomen is within normal limits.",
    "Soft tissues are unremarkable.",
    "Bones are diffusely demineralized.",
    "There is mild eventration of the right hemidiaphragm.",
    "Respiratory motion degrades the image quality.",
    "Mild elongation of the descending thoracic aorta.",
    "The costophrenic sulci are included.",
    "Degenerative changes of both shoulders.",
    "Skin folds overlie the thorax.",
    "Calcification of the costal cartilages.",
    "The aortic knob is prominent and partially calcified.",
    "Old healed deformity of the distal humerus, incompletely imaged.",
    "Moderate gaseous distension of the colon.",
    "The pulmonary arteries are of ordinary caliber.",
    "Overlying external leads obscure a minor portion of the image.",
    "Breast shadows are symmetric.",
    "Epicardial fat pad at the cardiophrenic angle.",
    "Kyphotic positioning accentuates the vascular pedicle.",
    "Mineralization is within expected limits for gender.",
    "Calcified lymph nodes from remote granulomatous infection.",
    "Paraspinal lines are intact.",
    "Mild pectus excavatum configuration.",
    "Exposure is adequate.",
    "There is an azygos fissure, a normal variant.",
    "Flowing anterior osteophytes of the thoracic vertebrae.",
)
SYMPTOMS = (
    "cough",
    "fever and cough",
    "shortness of breath",
    "chest pain",
    "dyspnea on exertion",
    "hypoxia",
    "weakness",
    "syncope",
    "altered mental status",
    "pleuritic chest pain",
    "leukocytosis",
    "wheezing",
    "hemoptysis",
    "palpitations",
    "abdominal pain",
    "a fall",
    "back pain",
    "weight loss",
    "night sweats",
    "productive cough for several days",
    "tachycardia",
    "fatigue and malaise",
    "epigastric discomfort",
    "sore throat and congestion",
    "motor vehicle collision",
    "dizziness",
    "sepsis of unknown source",
    "nausea and vomiting",
)
BACKGROUND = (
    "hypertension",
    "diabetes",
    "coronary artery disease",
    "cirrhosis",
    "end-stage renal disease on dialysis",
    "asthma",
    "breast cancer",
    "lymphoma on chemotherapy",
    "heart failure",
    "HIV",
    "chronic kidney disease",
    "a history of smoking",
    "atrial fibrillation",
    "recent surgery",
    "prostate cancer",
    "liver transplant",
    "alcohol abuse",
    "dementia",
    "multiple myeloma",
    "sickle cell disease",
)
QUESTIONS: dict[str, str] = {
    "evaluate for pneumonia": "Pneumonia",
    "? pneumonia": "Pneumonia",
    "rule out effusion": "Pleural Effusion",
    "assess for edema": "Edema",
    "rule out pneumothorax": "Pneumothorax",
    "evaluate for fracture": "Fracture",
    "? infiltrate": "Infiltration",
    "evaluate for mass": "Mass",
    "? COVID-19": "COVID-19",
    "check line placement": "Support Devices",
    "evaluate for acute process": "",
    "assess for interval change": "",
    "? acute cardiopulmonary disease": "",
    "preoperative evaluation": "",
    "evaluate for source of infection": "",
}
"""Questions of the referring doctor, with the finding that each names."""

RECOMMENDATIONS = (
    "Follow-up radiograph in 4 to 6 weeks is advised to document resolution.",
    "Correlation with clinical symptoms is recommended.",
    "CT of the chest may be obtained for further characterization.",
    "Conventional PA and lateral radiographs are suggested when the patient is able.",
    "Comparison with outside studies, if available, would be helpful.",
)
NOTIFICATIONS = (
    "The findings were discussed with Dr. ___ by Dr. ___ by telephone at ___ on ___, minutes after discovery.",
    "Results were communicated to ___, M.D. via the online critical results dashboard on ___.",
    "Findings were conveyed by ___ to the primary team at the time of dictation.",
)
ADDENDA = (
    "The above report was reviewed with Dr. ___, who agrees with the interpretation.",
    "A typographical error in the original dictation has been corrected; the conclusion is not altered.",
    "Outside prior studies dated ___ have since become available and do not alter the conclusion.",
)
WET_READS = (
    "Preliminary interpretation provided overnight. Final report to follow.",
    "Preliminary read discussed with the emergency department. See final report below.",
)
